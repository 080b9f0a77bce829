"""StackelbergSGD."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..backends import Backend
from ..groups.constraints import Constraint
from ..groups.schemes import StateDtype
from .base import StackelbergOptimizer


class StackelbergSGD(StackelbergOptimizer):
    """SGD with momentum at any number of learning rates, one launch: a drop-in for `torch.optim.SGD`.

    Args:
        params: as in `StackelbergAdam`; the default rule is "sgd".
        lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch (Sutskever et al. 2013).
        foreach, fused: accepted for compatibility and ignored; every backend is one launch.
        differentiable, head_lr_ratio, backend, flatten, max_grad_norm, ema_decay, update_every, update_every_grads,
            grads, mode, constraint, master, state_dtype, float32_state, seed: as in `StackelbergAdam`.

    Raises:
        ValueError, TypeError, RuntimeError: as in `StackelbergAdam`.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        head_lr_ratio: float = 10.0,
        backend: str | Backend = "auto",
        flatten: bool = True,
        max_grad_norm: float | dict[str, float] | None = None,
        ema_decay: float | dict[str, float] | None = None,
        update_every: int | dict[str, int] = 1,
        update_every_grads: str = "latest",
        grads: str = "gather",
        mode: str = "simultaneous",
        constraint: Constraint | dict[str, Constraint] | None = None,
        master: str | dict[str, str | None] | None = None,
        state_dtype: StateDtype | dict[str, StateDtype] = None,
        float32_state: str | dict[str, str] = "vectors",
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "ema_decay": ema_decay,
            "update_every": update_every,
            "update_every_grads": update_every_grads,
            "constraint": constraint,
            "master": master,
            "state_dtype": state_dtype,
            "float32_state": float32_state,
            "seed": seed,
            "rule": "sgd",
        }
        super().__init__(
            params,
            defaults,
            head_lr_ratio=head_lr_ratio,
            backend=backend,
            flatten=flatten,
            max_grad_norm=max_grad_norm,
            grads=grads,
            mode=mode,
        )
