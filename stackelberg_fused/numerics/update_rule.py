"""The update rules: the reference implementation in PyTorch.

The operations are those of torch.optim with `foreach=False`, term for term. With one group the result equals torch to
the last bit in float32 and float64. csrc/update_rule.h and triton_kernels/update_rule.py implement the same rules with
the same names and step comments. Their rounding differs only because they fold the bias corrections into two scalars.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .projection import project_box


def adam_update(
    param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any], step: float | Tensor
) -> None:
    """Apply Adam or AdamW (Kingma & Ba 2015; Loshchilov & Hutter 2019), in place.

    AMSGrad: Reddi et al. 2018. Cautious weight decay: Chen et al. 2025, arXiv 2510.12402.

    Args:
        param: any shape, any floating dtype.
        grad: same shape and dtype.
        state: `exp_avg`, `exp_avg_sq` and, with amsgrad, `max_exp_avg_sq`, shaped as `param`.
        group: lr, betas, eps, weight_decay, amsgrad, maximize, rule ("adam" or "adamw"), cautious,
            differentiable.
        step: the number of this step, from 1; a tensor if differentiable.
    """
    lr, weight_decay, eps = _scalar(group["lr"]), group["weight_decay"], group["eps"]
    beta1, beta2 = map(_scalar, group["betas"])
    differentiable = group.get("differentiable", False)
    exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
    is_cautious = group["rule"] == "adamw" and weight_decay != 0 and group.get("cautious")
    # maximize: ascend by negating the gradient
    grad = -grad if group["maximize"] else grad
    if weight_decay != 0 and group["rule"] != "adamw":
        # l2 weight decay
        grad = grad.add(param, alpha=weight_decay)
    elif weight_decay != 0 and not is_cautious:
        # decoupled weight decay
        param.mul_(1 - lr * weight_decay)
    # first moment
    exp_avg.lerp_(grad, 1 - beta1)
    # second moment
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    # amsgrad: running maximum; NaN stays NaN
    second_moment = exp_avg_sq
    if group["amsgrad"]:
        second_moment = state["max_exp_avg_sq"]
        previous = second_moment.clone() if differentiable else second_moment
        second_moment.copy_(torch.maximum(previous, exp_avg_sq))
    # update
    bias_correction1 = 1 - beta1**step
    bias_correction2 = 1 - beta2**step
    step_size = lr / bias_correction1
    if is_cautious:
        # cautious: a weight decays unless it and the update have opposite signs; their product might underflow
        denom = (second_moment.sqrt() / bias_correction2**0.5).add_(eps)
        update = step_size * ((exp_avg.clone() if differentiable else exp_avg) / denom)
        grows = ((update > 0) & (param < 0)) | ((update < 0) & (param > 0))
        decay = torch.where(grows, torch.ones_like(param), 1 - lr * weight_decay)
        param.mul_(decay).sub_(update)
    elif differentiable:
        # torch's form for this case: the scalars are tensors, and tensors that autograd saved must not change in place
        negative_step_size = step_size.neg()
        denom = second_moment.sqrt() / (bias_correction2.sqrt() * negative_step_size)
        param.addcdiv_(exp_avg.clone(), denom.add_(eps / negative_step_size))
    else:
        denom = (second_moment.sqrt() / bias_correction2**0.5).add_(eps)
        param.addcdiv_(exp_avg, denom, value=-step_size)


def sgd_update(
    param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any], first_momentum: bool
) -> None:
    """Apply SGD with momentum (Sutskever et al. 2013, in the form of torch.optim.SGD), in place.

    Args:
        param: any shape, any floating dtype.
        grad: same shape and dtype.
        state: `momentum_buffer`, shaped as `param`, if momentum is not 0.
        group: lr, momentum, dampening, nesterov, weight_decay, maximize.
        first_momentum: True if this step initialises the momentum buffer, with the gradient without dampening.
    """
    lr, weight_decay, momentum = _scalar(group["lr"]), group["weight_decay"], group["momentum"]
    # maximize: ascend by negating the gradient
    grad = -grad if group["maximize"] else grad
    # l2 weight decay
    if weight_decay != 0:
        grad = grad.add(param, alpha=weight_decay)
    # momentum
    if momentum != 0:
        momentum_buffer = state["momentum_buffer"]
        if first_momentum:
            momentum_buffer.copy_(grad.detach())
        else:
            momentum_buffer.mul_(momentum).add_(grad, alpha=1 - group["dampening"])
        # nesterov: look ahead along the momentum
        grad = grad.add(momentum_buffer, alpha=momentum) if group["nesterov"] else momentum_buffer
    # update
    if isinstance(lr, Tensor) and lr.requires_grad:
        param.addcmul_(grad, lr, value=-1)
    else:
        param.add_(grad, alpha=-lr)


def ema_update(param: Tensor, ema: Tensor, group: dict[str, Any]) -> None:
    """Update the exponential moving average of a parameter (Polyak & Juditsky 1992; torch.optim.swa_utils), in place.

    Args:
        param, ema: any shape, any floating dtype.
        group: ema_decay.
    """
    ema.lerp_(param.detach(), 1 - float(group["ema_decay"]))


def project(param: Tensor, bounds: tuple[float, float] | None) -> None:
    """Move a parameter to the nearest point of its group's box, in place; NaN stays NaN.

    Args:
        param: any shape, any floating dtype.
        bounds: lower and upper bound, which the dtype of the stored parameter represents exactly; None if the group
            has no box. Other constraint sets are projected onto after the update.
    """
    if bounds is not None:
        param.copy_(project_box(param, *bounds))


def mean_gradient(grad_sum: Tensor, grad: Tensor | None, group: dict[str, Any]) -> Tensor:
    """Return the mean gradient over the steps since the group last moved, a new tensor.

    Args:
        grad_sum: the sum of the earlier gradients; any shape, any floating dtype.
        grad: the gradient of this step, same shape and dtype; None counts as zero.
        group: update_every.
    """
    total = grad_sum if grad is None else grad_sum + grad
    return total * (1 / int(group["update_every"]))


def _scalar(value: Any) -> Any:
    """Return a rate in the form that torch's single-tensor rules use: a Python number or a 0-d tensor."""
    # do not squeeze a 0-d tensor: a view would sum up its gradient in another order than torch
    return value.squeeze() if isinstance(value, Tensor) and value.ndim else value
