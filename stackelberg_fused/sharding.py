"""DTensor shards (FSDP2, tensor parallelism): the optimizer updates the local shard where it lies."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    # not imported here: it takes a second, and nothing is a DTensor before somebody else imported it
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_tensor(tensor: Tensor, like: Tensor | None = None, label: str = "") -> Tensor:
    """The local shard of a DTensor, or the tensor itself.

    Raises:
        ValueError: a gradient is laid out over the mesh otherwise than its parameter `like`.
    """
    if not is_sharded(tensor):
        if like is not None:
            raise TypeError(f"{label}: the parameter is a DTensor, its gradient is not")
        return tensor
    if like is not None and tensor.placements != like.placements:
        raise ValueError(
            f"{label}: gradient placements {tensor.placements} differ from the parameter's {like.placements}"
        )
    return tensor._local_tensor


def shard_like(local: Tensor, param: Tensor) -> Tensor:
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
