"""Rows of sharded parameters: DTensors on a mesh of one process, which cost the host what they cost on any rank."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import tempfile
from typing import Any

import torch

from .contestant import Contestant, find_contestant
from .peers import float32_contestants
from .workloads import TORCH_FUSED, UNSHARDED


@functools.cache
def mesh_of(shape: tuple[int, ...]) -> Any:
    """Return a mesh of this process; the first one begins a process group of it alone."""
    dist = torch.distributed
    if not dist.is_initialized():
        folder = tempfile.TemporaryDirectory()
        store = dist.FileStore(f"{folder.name}/store", 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        atexit.register(folder.cleanup)
        atexit.register(_end)
    return dist.device_mesh.init_device_mesh("cpu", shape)


def _end() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sharded_parameters(tensors: list[torch.Tensor], mesh: tuple[int, ...]) -> list[Any]:
    """Return parameters of these values, sharded in their first dimension over every dimension of the mesh."""
    from torch.distributed.tensor import Shard, distribute_tensor

    placements = [Shard(0)] * len(mesh)
    return [torch.nn.Parameter(distribute_tensor(t, mesh_of(mesh), placements)) for t in tensors]


def sharded_gradients(params: list[Any], grads: list[torch.Tensor]) -> list[Any]:
    """Return gradients as FSDP2 makes them: laid out by the very spec that their parameter has."""
    from torch.distributed.tensor import DTensor

    return [
        DTensor(grad, param._spec, requires_grad=False)
        for param, grad in zip(params, grads, strict=True)
    ]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor as a plain one; of a DTensor on a mesh of one process, its only shard."""
    return getattr(tensor, "_local_tensor", tensor)


def sharded_contestants() -> list[Contestant]:
    """Return ours, also without shards, and torch's."""
    known = float32_contestants()
    names = ("ours cpu", "ours reference", TORCH_FUSED, "torch foreach")
    found = [find_contestant(known, name) for name in names]
    plain = dataclasses.replace(found[0], name=UNSHARDED, sharded=False)
    return [found[0], plain, *found[1:]]
