"""DTensor shards (FSDP2, tensor parallelism): the optimizer updates the local shard where it lies."""

from __future__ import annotations

import torch
from torch import Tensor

if torch.distributed.is_available():
    from torch.distributed.tensor import DTensor
else:  # a torch built without distributed

    class DTensor:  # type: ignore[no-redef]
        """Stands in where no tensor can be sharded."""


def is_sharded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def local_tensor(tensor: Tensor, like: Tensor | None = None, label: str = "") -> Tensor:
    """The local shard of a DTensor, or the tensor itself.

    Raises:
        ValueError: a gradient is laid out over the mesh otherwise than its parameter `like`.
    """
    if not isinstance(tensor, DTensor):
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
    if not isinstance(param, DTensor):
        return local
    return DTensor.from_local(
        local,
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=param.shape,
        stride=param.stride(),
    )
