"""Tensors laid out over the ranks of a test in several ways, as DTensors."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def lay_out(values: list[Tensor], layout: str) -> list[Any]:
    """Tensors of these values, sharded over all ranks; "two meshes" and what is on a square takes four ranks."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    world = dist.get_world_size()
    line = dist.init_device_mesh("cpu", (world,))
    square = (
        dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        if world == 4
        else line
    )
    out = []
    for i, value in enumerate(values):
        is_matrix = value.dim() > 1
        mesh, placements = {
            "rows": (line, [Shard(0)]),
            "columns": (line, [Shard(1 if is_matrix else 0)]),
            "copies": (line, [Replicate()]),
            "copies of rows": (square, [Replicate(), Shard(0)]),
            "rows and columns": (square, [Shard(0), Shard(1) if is_matrix else Replicate()]),
            "two meshes": (square, [Shard(0), Shard(1)])
            if is_matrix
            else (square["outer"] if world == 4 else line, [Shard(0)]),
            "some not sharded": (line, [Shard(0)] if i % 2 else None),
        }[layout]
        out.append(
            value.clone() if placements is None else distribute_tensor(value, mesh, placements)
        )
    return out
