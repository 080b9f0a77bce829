"""Statistics of a part of a table, and what follows from sums of several launches: on every backend."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import normal
from torch import nn

import stackelberg_fused as sf

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


@pytest.mark.parametrize("bad", [0, 1], ids=["sharded", "not sharded"])
@by_backend
def test_an_infinity_is_found_beside_what_a_later_launch_finds(
    mesh: Any, backend: str, bad: int
) -> None:
    """A launch for the mesh and one for the others: neither takes back what the other found."""
    instance, device = chosen(backend)
    if device != "cpu":
        pytest.skip("the mesh is the host's")
    optimizer = _optimizer(instance, device, mesh, (0, 4))
    params = [p for group in optimizer.param_groups for p in group["params"]]
    scaler = sf.GradScaler("cpu", init_scale=1.0)
    scaler.scale(torch.zeros(()))
    grad = getattr(params[bad].grad, "_local_tensor", params[bad].grad)
    kept = float(grad.view(-1)[3])
    for value, is_skipped in ((torch.inf, True), (kept, False)):
        grad.view(-1)[3] = value
        scaler.step(optimizer)
        scaler.update(1.0)
        assert bool(optimizer.last_step.skipped) is is_skipped
