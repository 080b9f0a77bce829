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
        foreach, fused, differentiable, head_lr_ratio, backend, flatten, max_grad_norm, ema_decay, update_every,
            update_every_grads, grads, mode, constraint, master, state_dtype, float32_state, seed: as in
            `StackelbergAdam`.

    Raises:
        ValueError, TypeError, RuntimeError: as in `StackelbergAdam`.
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
