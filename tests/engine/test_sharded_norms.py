"""`max_grad_norm` over shards: the same bits on every rank, and as if nothing were sharded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from checks import Snapshot
from ranks import Ranks, of_ranks
from sharded_layouts import LAYOUTS, groups, lay_out, values
from torch import Tensor, nn
from wrapped_models import local, whole

import stackelberg_fused as sf

pytestmark = of_ranks
LIMITS: dict[str, Any] = {
    "together": 0.5,
    "each": {"body": 0.3, "head": 0.1},
    "head": {"head": 0.1},
}


def _clipped(
    layout: str | None, backend: str, limits: Any, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    """Norms and factors of two steps, and the parameters after them; None: not sharded."""

    def laid_out(plain: list[Tensor]) -> list[Any]:
        return plain if layout is None else lay_out(plain, layout)

    params = [nn.Parameter(p) for p in laid_out(values(0, dtype))]
    optimizer = sf.StackelbergAdamW(
        groups(params), lr=0.01, backend=backend, max_grad_norm=limits, state_dtype=None
    )
    found = []
    for step in range(2):
        for p, grad in zip(params, laid_out(values(50 * step + 20, dtype)), strict=True):
            p.grad = grad
        optimizer.step()
        last = optimizer.last_step
        found += [*last.grad_norm.values(), *last.clip_factor.values()]
    return found, [whole(p.detach()) for p in params]


def _is_as_without_shards(layout: str, backend: str, limits: Any) -> list[float]:
    found, params = _clipped(layout, backend, limits)
    expected, unsharded = _clipped(None, backend, limits)
    for a, b in zip([*found, *params], [*expected, *unsharded], strict=True):
        assert torch.equal(a, b), (a, b)
    return [float(each) for each in found]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout, world", LAYOUTS)
def test_norms_have_the_bits_of_the_unsharded_ones(
    ranks: Ranks, layout: str, world: int, backend: str, limits: str
) -> None:
    found = ranks(world, _is_as_without_shards, layout, backend, LIMITS[limits])
    assert all(each == found[0] for each in found)


def _is_as_torchs(layout: str) -> None:
    params = [nn.Parameter(p) for p in lay_out(values(0), layout)]
    grads = lay_out(values(20), layout)
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    optimizer = sf.StackelbergSGD(params, lr=0.0, max_grad_norm=0.5)
    optimizer.step()
    norm = nn.utils.clip_grad_norm_(params, 0.5)
    torch.testing.assert_close(optimizer.last_step.grad_norm["total"].float(), whole(norm))


@pytest.mark.parametrize("layout, world", [("rows", 3), ("rows and columns", 4)])
def test_the_norm_is_torchs(ranks: Ranks, layout: str, world: int) -> None:
    ranks(world, _is_as_torchs, layout)


def _all_see(value: float, backend: str, layout: str, bad: int) -> tuple[float, ...]:
    params = [nn.Parameter(p) for p in lay_out(values(0), layout)]
    optimizer = sf.StackelbergAdamW(params, lr=0.01, backend=backend, max_grad_norm=1.0)
    grads = lay_out(values(20), layout)
    if dist.get_rank() == 1:
        local(grads[bad])[0, 0] = value
    for p, grad in zip(params, grads, strict=True):
        p.grad = grad
    optimizer.step()
    last = optimizer.last_step
    return float(last.grad_norm["total"]), float(last.clip_factor["body"])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize(
    "layout, bad", [("rows", 1), ("some not sharded", 1), ("some not sharded", 0)]
)
def test_every_rank_sees_what_is_not_finite_on_one(
    ranks: Ranks, layout: str, bad: int, backend: str
) -> None:
    assert ranks(2, _all_see, math.inf, backend, layout, bad) == [(math.inf, 0.0)] * 2
    for norm, factor in ranks(2, _all_see, math.nan, backend, layout, bad):
        assert math.isnan(norm)
        assert math.isnan(factor)


def _some_have_no_gradient(backend: str) -> list[float]:
    """One player's parameters are all on the first rank, and no rank has a gradient of the other player's."""
    params = [nn.Parameter(p) for p in lay_out(values(0), "rows")]
    optimizer = sf.StackelbergAdamW(groups(params), lr=0.01, backend=backend, max_grad_norm=1.0)
    only = params[2]  # of one row
    only.grad = lay_out(values(20), "rows")[2]
    optimizer.step()
    optimizer.zero_grad()
    optimizer.step(role="head")  # without any gradient
    only.grad = lay_out(values(20), "rows")[2]
    optimizer.step(role="body")
    return [float(norm) for norm in optimizer.last_step.grad_norm.values()]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_ranks_without_gradients_take_part(ranks: Ranks, backend: str) -> None:
    found = ranks(2, _some_have_no_gradient, backend)
    norm = float(values(20)[2].double().norm())
    assert found[0] == found[1]
    assert found[0] == pytest.approx([norm, norm])  # of the body and of all; the head rests


def _different_limits() -> str:
    params = [nn.Parameter(p) for p in lay_out(values(0), "rows")]
    limit = 1.0 + dist.get_rank()
    optimizer = sf.StackelbergAdamW(params, lr=0.01, max_grad_norm=limit)
    for p, grad in zip(params, lay_out(values(20), "rows"), strict=True):
        p.grad = grad
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="max_grad_norm") as error:
        optimizer.step()
    before.assert_unchanged()
    return str(error.value)


def test_ranks_that_clip_to_different_norms_are_told(ranks: Ranks) -> None:
    first, second = ranks(2, _different_limits)
    assert first == second


# like no other: torch keeps plans by mesh and shape, with process groups that are gone by the next test
LENGTH = 26


def _nested_meshes() -> str:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard, distribute_tensor

    meshes = [DeviceMesh("cpu", [0, 1, 2]), DeviceMesh("cpu", [0, 1])]
    few = nn.Parameter(distribute_tensor(torch.ones(LENGTH), meshes[1], [Shard(0)]))
    params = [nn.Parameter(distribute_tensor(torch.ones(LENGTH), meshes[0], [Shard(0)])), few]
    optimizer = sf.StackelbergSGD(params, lr=1.0, max_grad_norm=1.0)
    for p in params:
        p.grad = torch.ones_like(p)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="one of them alone would clip to another norm") as error:
        optimizer.step()
    before.assert_unchanged()
    # the rank that the mesh lacks has nothing to clip
    alone = sf.StackelbergSGD([few], lr=1.0, max_grad_norm=1.0)
    alone.step()
    norm = float(alone.last_step.grad_norm["total"])
    assert norm == pytest.approx(LENGTH**0.5 if dist.get_rank() < 2 else 0.0)
    if dist.get_rank() == 2:
        mixed = sf.StackelbergSGD([few, nn.Parameter(torch.ones(2))], lr=1.0, max_grad_norm=1.0)
        with pytest.raises(ValueError, match="has none, so that it would clip to another norm"):
            mixed.step()
    return str(error.value)


def test_meshes_of_which_one_has_more_ranks(ranks: Ranks) -> None:
    """The others would clip to another norm: all ranks refuse, and say the same."""
    assert len(set(ranks(3, _nested_meshes))) == 1


def _bfloat16_norms(layout: str) -> list[float]:
    found, _ = _clipped(layout, "cpu", 0.5, torch.bfloat16)
    expected, _ = _clipped(None, "cpu", 0.5, torch.bfloat16)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b), (a, b)
    return [float(each) for each in found]


@pytest.mark.parametrize("layout, world", [("rows", 3), ("copies of rows", 4)])
def test_norms_of_16_bit_gradients(ranks: Ranks, layout: str, world: int) -> None:
    found = ranks(world, _bfloat16_norms, layout)
    assert all(each == found[0] for each in found)
