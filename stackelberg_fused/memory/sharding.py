"""Parts of the parameters: DTensor shards (FSDP2, tensor parallelism), of which the optimizer updates the local one."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

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


class Ranks(NamedTuple):
    """Ranks that have to agree on something.

    Attributes:
        group: process group.
        device_type: of tensors that it reduces.
    """

    group: Any
    device_type: str


def ranks_of_shards(params: Iterable[Tensor]) -> list[Ranks]:
    """Return the groups of ranks that hold different parts of these parameters, by mesh and dimension.

    In the order of the parameters, which is the same on all ranks. A parameter counts whether it has a gradient here or
    not: a rank that has none still has to answer. Those that hold replicas know the same anyway.
    """
    found: dict[tuple[Any, int], Ranks] = {}
    for param in filter(is_sharded, params):
        mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
        for dim, placement in enumerate(placements):
            if not placement.is_replicate() and (mesh, dim) not in found:
                found[(mesh, dim)] = Ranks(mesh.get_group(dim), mesh.device_type)
    return list(found.values())
