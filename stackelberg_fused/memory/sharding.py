"""Parts of the parameters: DTensor shards (FSDP2, tensor parallelism), of which the optimizer updates the local one."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def is_sharded(tensor: Any) -> bool:
    """Tell whether a tensor is a DTensor."""
    # no import here: it takes a second, and no DTensor exists before another module has imported it
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_tensor(tensor: Any) -> Tensor:
    """Return the local shard of a DTensor, or the tensor itself if it is none."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def local_gradient(grad: Any, param: Any, label: str) -> Tensor:
    """Return the local shard of a gradient, or the gradient itself if it is no DTensor.

    Args:
        grad, param: a gradient and its parameter.
        label: names the parameter in the messages.

    Raises:
        TypeError: only one of the two is a DTensor.
        ValueError: their placements differ.
    """
    if is_sharded(grad) != is_sharded(param):
        mismatch = "the parameter is a DTensor, its gradient is not"
        if is_sharded(grad):
            mismatch = "the gradient is a DTensor, its parameter is not"
        raise TypeError(f"{label}: {mismatch}")
    if is_sharded(grad) and grad.placements != param.placements:
        raise ValueError(
            f"{label}: gradient placements {grad.placements} differ from the parameter's {param.placements}"
        )
    return local_tensor(grad)


def shard_like(local: Tensor, param: Any) -> Tensor:
    """Return a DTensor with the local shard `local`, laid out as `param`; `local` itself if `param` is no DTensor."""
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
