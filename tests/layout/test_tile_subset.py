"""Statistics of some of a table's tiles, and what follows from sums of several launches: on every backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from backends import by_backend, chosen
from cases import normal
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.layout.tile_subset import TileSubset

dist = torch.distributed
SHAPES = [(70, 100), (9,), (3, 4096), (5, 5), (2,), (4100,)]
HEAD = 3  # parameters from here on are the head's


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    store = dist.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _optimizer(backend: Any, device: str, mesh: Any = None, sharded: tuple[int, ...] = ()) -> Any:
    from torch.distributed.tensor import Shard, distribute_tensor

    def placed(i: int, value: torch.Tensor) -> Any:
        return distribute_tensor(value, mesh, [Shard(0)]) if i in sharded else value

    params = [
        nn.Parameter(placed(i, normal(shape, i).to(device))) for i, shape in enumerate(SHAPES)
    ]
    for i, (p, shape) in enumerate(zip(params, SHAPES, strict=True)):
        p.grad = placed(i, normal(shape, 10 + i).to(device))
    groups = [{"params": params[:HEAD]}, {"params": params[HEAD:], "role": "head"}]
    limits = {"body": 0.5, "head": 0.1}
    return sf.StackelbergAdamW(groups, lr=0.01, backend=backend, max_grad_norm=limits)


@pytest.mark.parametrize("sharded", [(0, 4), (0, 1, 2), (3,), tuple(range(len(SHAPES)))])
@by_backend
def test_parameters_of_a_mesh_beside_others(
    mesh: Any, backend: str, sharded: tuple[int, ...]
) -> None:
    instance, device = chosen(backend)
    if device != "cpu":
        pytest.skip("the mesh is the host's")
    plain, mixed = _optimizer(instance, device), _optimizer(instance, device, mesh, sharded)
    for role in (None, "head", "body", None):
        for each in (plain, mixed):
            each.step(role=role)
        expected, found = plain.last_step, mixed.last_step
        assert {k: float(v) for k, v in found.grad_norm.items()} == {
            k: float(v) for k, v in expected.grad_norm.items()
        }
        for p, q in zip(
            (p for group in plain.param_groups for p in group["params"]),
            (p for group in mixed.param_groups for p in group["params"]),
            strict=True,
        ):
            assert torch.equal(p, getattr(q, "_local_tensor", q))


def test_tiles_are_those_of_the_slots_in_the_order_of_the_table() -> None:
    optimizer = _optimizer("reference", "cpu")
    optimizer.step()
    (unit,) = optimizer._engine.units
    table = unit.table
    slots = np.zeros(len(SHAPES), bool)
    slots[[0, 5]] = True
    subset = TileSubset(table, slots, 1)
    assert subset.tiles.tolist() == [[0, 0], [0, 4096], [5, 0], [5, 4096]]
    ranges = {role: subset.range_in(table.spans[role]) for role in (None, "body", "head")}
    assert ranges == {None: (0, 4), "body": (0, 2), "head": (2, 2)}
    assert subset.before(table.first_head_tile) == 2
