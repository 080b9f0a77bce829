"""DTensor shards (FSDP2, tensor parallelism): the optimizer updates the local shard where it lies."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    # not imported here: it takes a second, and nothing is a DTensor before somebody else imported it
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_tensor(tensor: Any) -> Tensor:
    """The local shard of a DTensor, or the tensor itself."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def local_gradient(grad: Any, param: Any, label: str) -> Tensor:
    """The local shard of a gradient.

    Raises:
        TypeError, ValueError: one of the two is a DTensor and the other is not, or they lie over the mesh differently.
    """
    if is_sharded(grad) != is_sharded(param):
        which = "the parameter is a DTensor, its gradient is not"
        if is_sharded(grad):
            which = "the gradient is a DTensor, its parameter is not"
        raise TypeError(f"{label}: {which}")
    if is_sharded(grad) and grad.placements != param.placements:
        raise ValueError(
            f"{label}: gradient placements {grad.placements} differ from the parameter's {param.placements}"
        )
    return local_tensor(grad)


def shard_like(local: Tensor, param: Any) -> Tensor:
    """A DTensor around local state, laid out as its parameter; for plain parameters the state itself."""
    if not is_sharded(param):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    )
