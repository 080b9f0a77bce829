"""Parameters of odd sizes, laid out over ranks in every way that torch has."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from cases import normal
from torch import Tensor

# odd sizes: some ranks hold less than others, or nothing
SHAPES = [(7, 5), (70, 100), (1, 3), (2, 7), (9,), (2,)]
HEADS = (3, 5)
# and how many ranks each takes
LAYOUTS = [
    ("rows", 2),
    ("rows", 3),
    ("columns", 2),
    ("copies of rows", 4),
    ("rows and columns", 4),
    ("two meshes", 4),
    ("some not sharded", 2),
]


def lay_out(plain: list[Tensor], layout: str) -> list[Any]:
    """Tensors of these values, sharded over all ranks."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    world = dist.get_world_size()
    line = dist.init_device_mesh("cpu", (world,))
    square = (
        dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        if world == 4
        else line
    )
    out = []
    for i, value in enumerate(plain):
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


def values(shift: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A tensor of each shape."""
    # of all sizes, so that a sum with rounding would depend on its order
    return [
        (normal(shape, shift + i) * 10.0 ** (i - 3)).to(dtype) for i, shape in enumerate(SHAPES)
    ]


def groups(params: list[Any]) -> list[dict[str, Any]]:
    """A body group and a head group."""
    heads = [params[i] for i in HEADS]
    bodies = [p for i, p in enumerate(params) if i not in HEADS]
    return [{"params": bodies}, {"params": heads, "role": "head"}]
