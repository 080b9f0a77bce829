"""Parts of the parameters: DTensor shards (FSDP2, tensor parallelism), of which the optimizer updates the local one."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..torch_compat import root_mesh


def dtensor_class() -> type | None:
    """Return torch's DTensor; None where nothing has imported it, so that none exists."""
    # no import here: it takes a second
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor


def is_sharded(tensor: Any) -> bool:
    """Tell whether a tensor is a DTensor."""
    dtensor = dtensor_class()
    return dtensor is not None and isinstance(tensor, dtensor)


def local_tensor(tensor: Any) -> Tensor:
    """Return the local shard of a DTensor, or the tensor itself if it is none."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def same_placements(a: Any, b: Any) -> bool:
    """Tell whether two DTensors lie on the same mesh in the same way."""
    return bool(a.placements == b.placements and a.device_mesh == b.device_mesh)


def local_gradient(grad: Any, param: Any, label: str) -> Tensor:
    """Return the local shard of a gradient, or the gradient itself if it is no DTensor.

    Waits for a shard that a collective is still to bring.

    Args:
        grad, param: a gradient and its parameter.
        label: names the parameter in the messages.

    Raises:
        TypeError: only one of the two is a DTensor.
        ValueError: they are laid out in different ways, or the gradient is not summed over ranks yet.
    """
    if is_sharded(grad) != is_sharded(param):
        mismatch = "the parameter is a DTensor, its gradient is not"
        if is_sharded(grad):
            mismatch = "the gradient is a DTensor, its parameter is not"
        raise TypeError(f"{label}: {mismatch}")
    if not is_sharded(grad):
        return grad
    if any(placement.is_partial() for placement in grad.placements):
        raise ValueError(
            f"{label}: its gradient has placements {grad.placements}, it is still to be summed over ranks: "
            f"redistribute it to {param.placements} before the step"
        )
    if grad.placements != param.placements:
        raise ValueError(
            f"{label}: gradient placements {grad.placements} differ from the parameter's {param.placements}"
        )
    if grad.device_mesh != param.device_mesh:
        raise ValueError(
            f"{label}: gradient lies on {grad.device_mesh}, the parameter on {param.device_mesh}"
        )
    local = grad._local_tensor
    return local.wait() if hasattr(local, "wait") else local


def place_in_mesh(param: Any) -> tuple[Any, bool]:
    """Return the mesh that a parameter is laid out over, None if it is no DTensor, and whether it counts here.

    Of copies of one shard, which several ranks hold where a dimension of the mesh replicates it, one counts: that of
    the ranks which come first in each such dimension.
    """
    if not is_sharded(param):
        return None, True
    coordinate = param.device_mesh.get_coordinate() or ()
    # is_shard() says no of the strided shards of a 2-D mesh
    at_first = all(
        not placement.is_replicate() or at == 0
        for placement, at in zip(param.placements, coordinate, strict=False)
    )
    return param.device_mesh, at_first


def is_in(mesh: Any) -> bool:
    """Tell whether this rank is one of a mesh; one that is not has no part of what is laid out over it."""
    return mesh.get_coordinate() is not None


def ranks_of(mesh: Any) -> tuple[int, ...]:
    """The ranks of a mesh, in its order."""
    return tuple(mesh.mesh.flatten().tolist())


def first_uncommon(meshes: Iterable[Any]) -> tuple[Any, Any] | None:
    """Find two meshes of which some ranks are in one alone, so that what is known of both would differ by rank.

    Slices of one mesh do not count: each rank has one of its own, with all that ranks of other slices hold. All ranks
    of these meshes come to the same answer.
    """
    found = [*dict.fromkeys(meshes)]
    if len(found) < 2:
        return None
    roots = [set(ranks_of(root_mesh(mesh))) for mesh in found]
    common = min(roots, key=len)
    for mesh, root in zip(found, roots, strict=True):
        if not (common <= root and common.issuperset(ranks_of(mesh))):
            return found[roots.index(common)], mesh
    return None


def refuse_uncommon(meshes: Iterable[Any], what: str, consequence: str, each: str) -> None:
    """Raise where some ranks would not learn all of a sum over several meshes.

    Args:
        meshes: of the parameters; None for one that is not laid out over any.
        what: the sum is of what: "max_grad_norm is of parameters".
        consequence: what ranks would do then: "clip to another norm".
        each: what to give each mesh instead: "an optimizer of its own".

    Raises:
        ValueError: it names two meshes.
    """
    every = [*meshes]
    found = [mesh for mesh in every if mesh is not None]
    pair = first_uncommon(found)
    if pair is not None:
        raise ValueError(
            f"{what} over {pair[0]} and {pair[1]}: a rank that is in one of them alone would {consequence}. Lay "
            f"both out over the same ranks, or give each {each}"
        )
    if None in every and not all(map(is_in, found)):
        raise ValueError(
            f"{what} of which this rank has all and others over {found[0]}, of which it has none, so that it "
            f"would {consequence}: give each {each}"
        )


def sum_over_ranks(mesh: Any, tensor: Tensor) -> None:
    """Add up a tensor over all ranks of a mesh, in place.

    One all-reduce, if the mesh has one dimension or is that of all ranks; else one for each dimension. Every rank of
    the mesh has to call this; on others it does nothing.
    """
    dist = torch.distributed
    if mesh.size() == 1 or not is_in(mesh):
        return
    # where shards are offloaded to the host, the mesh may reduce on the GPU alone
    reduced = tensor if tensor.device.type == mesh.device_type else tensor.to(mesh.device_type)
    if mesh.ndim > 1 and mesh.size() == dist.get_world_size():
        dist.all_reduce(reduced)
    else:
        for dimension in range(mesh.ndim):
            dist.all_reduce(reduced, group=mesh.get_group(dimension))
    if reduced is not tensor:
        tensor.copy_(reduced)


def shard_like(local: Tensor, param: Any, shape: tuple[int, ...] | None = None) -> Tensor:
    """Return a DTensor with the local shard `local`, laid out as `param`; `local` itself if `param` is no DTensor.

    Args:
        shape: of the whole of it, contiguous, if it is not that of `param`.
    """
    if not is_sharded(param):
        return local
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local,
        param.device_mesh,
        param.placements,
        run_check=False,
        shape=param.shape if shape is None else torch.Size(shape),
        stride=param.stride() if shape is None else torch.empty(shape, device="meta").stride(),
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
        if not is_in(mesh):
            continue
        for dim, placement in enumerate(placements):
            if not placement.is_replicate() and (mesh, dim) not in found:
                found[(mesh, dim)] = Ranks(mesh.get_group(dim), mesh.device_type)
    return list(found.values())
