"""StackelbergSGD."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from .base import StackelbergOptimizer
from .options import Params, SGDOptions, takes


class StackelbergSGD(StackelbergOptimizer):
    """SGD with momentum at any number of learning rates, one launch: a drop-in for `torch.optim.SGD`.

    Args:
        params: as in `StackelbergAdam`; the default rule is "sgd".
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch (Sutskever et al. 2013).
        foreach, fused, differentiable, head_lr_ratio, backend, flatten, max_grad_norm: as in `StackelbergAdam`.
        ema_decay, update_every, update_every_grads, grads, mode, release, constraint: as in `StackelbergAdam`.
        master, state_dtype, float32_state, seed: as in `StackelbergAdam`.

    Raises:
        ValueError, TypeError, RuntimeError: as in `StackelbergAdam`.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> opt = sf.StackelbergSGD(model.parameters(), lr=0.1, momentum=0.9, max_grad_norm=1.0)
        >>> (100 * model(torch.ones(3, 4))).mean().backward()
        >>> opt.step()
        >>> float(opt.last_step.grad_norm["total"])  # of four weights and a bias, before clipping
        223.606...
    """

    @takes(SGDOptions)
    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        **options: Unpack[SGDOptions],
    ) -> None:
        rule = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "rule": "sgd",
        }
        super().__init__(params, rule, options, SGDOptions)
