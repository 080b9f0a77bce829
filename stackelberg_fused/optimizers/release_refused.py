"""What does not go with `release="backward"`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

_WITH = "release='backward' does not go with"


def check_release(
    release: Any, of_optimizer: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Raise ValueError for a `release` that there is not, or other options that it does not go with."""
    if release not in (None, "backward"):
        raise ValueError(f"unknown release {release!r}, expected None or 'backward'")
    if release is None:
        return
    if of_optimizer["grads"] == "flat":
        raise ValueError(f"{_WITH} grads='flat', whose buffers hold all gradients")
    for name in ("differentiable", "capturable"):
        if defaults.get(name):
            raise ValueError(f"{_WITH} {name}=True")
    refuse_clipping(of_optimizer["max_grad_norm"])


def refuse_clipping(max_grad_norm: Any) -> None:
    """Raise ValueError for a limit of the norm, which is not known before all gradients are."""
    if max_grad_norm is not None:
        raise ValueError(
            f"{_WITH} max_grad_norm: the norm is that of all gradients, and the first ones are applied and freed "
            "before the last ones are known"
        )


def refuse_scaler() -> NoReturn:
    """Raise RuntimeError for a gradient scaler, which skips steps."""
    raise RuntimeError(
        f"{_WITH} a gradient scaler: whether some gradient is infinite is known only when others were applied, with "
        "the loss still scaled. Those of the backward pass before this step were. Train in bfloat16, or without release"
    )


def refuse_reduced_later(params: Iterable[Tensor]) -> None:
    """Raise RuntimeError for parameters whose gradients are reduced after autograd has told that they are complete.

    Neither tells a parameter so; they are looked for among all objects, once for each engine that begins a step.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    ours = {id(param) for param in params}
    for found in [o for o in gc.get_objects() if issubclass(type(o), _reducing())]:
        if any(id(param) in ours for param in found.parameters()):
            raise RuntimeError(
                f"{_WITH} {type(found).__name__}: it reduces gradients over processes after the backward pass has "
                "shown them to the optimizer. fully_shard (FSDP2) reduces them before"
            )


def _reducing() -> tuple[type, ...]:
    fsdp = sys.modules.get(
        "torch.distributed.fsdp"
    )  # it takes long to import, and whoever shards has
    return (DistributedDataParallel, *([] if fsdp is None else [fsdp.FullyShardedDataParallel]))
