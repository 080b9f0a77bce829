"""Infinities that one rank finds: all skip the step, and ask each other once for norms and infinities together."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks, of_ranks
from sharded_layouts import LAYOUTS, groups, lay_out, values
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from wrapped_models import local, whole

import stackelberg_fused as sf

pytestmark = of_ranks
SCALE = 8.0
by_backend = pytest.mark.parametrize("backend", ["cpu", "reference"])


class _Collectives(TorchDispatchMode):
    """Counts what the ranks ask each other, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


class _Training:
    """Parameters in a layout, an optimizer of them and a scaler."""

    def __init__(
        self, layout: str, backend: str, dtypes: list[torch.dtype], **options: Any
    ) -> None:
        self.layout, self.dtypes = layout, dtypes
        self.params = [nn.Parameter(p) for p in self._laid_out(0, 1.0)]
        self.groups = groups(self.params)
        self.options = options
        self.backend = backend
        self.scaler = sf.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)

    def _laid_out(self, shift: int, scale: float) -> list[Any]:
        dtypes = self.dtypes * 6
        plain = [v.to(dtype) for v, dtype in zip(values(shift), dtypes, strict=False)]
        return lay_out([scale * v for v in plain], self.layout)

    def optimizer(self) -> sf.StackelbergAdamW:
        return sf.StackelbergAdamW(self.groups, lr=0.01, backend=self.backend, **self.options)

    def set_gradients(self, step: int) -> None:
        self.scaler.scale(torch.zeros(()))  # makes the scale
        grads = self._laid_out(50 * step + 20, self.scaler.get_scale())
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad

    def step(self, optimizer: Any) -> tuple[bool, bool]:
        """Whether the step was skipped, and whether nothing moved."""
        before = [whole(p.detach()).clone() for p in self.params]
        self.scaler.step(optimizer)
        self.scaler.update()
        moved = [
            not torch.equal(whole(p.detach()), b) for p, b in zip(self.params, before, strict=True)
        ]
        return bool(optimizer.last_step.skipped), not any(moved)


def _collectives_of_a_step(layout: str, backend: str, limit: float | None) -> dict[str, int]:
    training = _Training(layout, backend, [torch.float32], max_grad_norm=limit)
    optimizer = training.optimizer()
    training.set_gradients(0)
    training.step(optimizer)  # before which ranks compare their groups
    training.set_gradients(1)
    with _Collectives() as mode:
        training.scaler.step(optimizer)
    return dict(mode.counts)


@by_backend
@pytest.mark.parametrize("limit", [None, 0.5], ids=["", "clipped"])
@pytest.mark.parametrize("layout, world", LAYOUTS)
def test_one_collective_for_each_mesh(
    ranks: Ranks, layout: str, world: int, limit: float | None, backend: str
) -> None:
    meshes = 2 if layout == "two meshes" else 1
    expected = {"c10d::allreduce_": meshes}
    assert ranks(world, _collectives_of_a_step, layout, backend, limit) == [expected] * world


def _skipped(
    layout: str,
    backend: str,
    dtypes: list[torch.dtype],
    at: tuple[int, int],
    value: float,
    options: dict[str, Any],
) -> list[bool]:
    """Which of three steps are skipped, where the second has a gradient that is not finite on one rank.

    Args:
        at: the rank, and which of the parameters.
    """
    rank, bad = at
    training = _Training(layout, backend, dtypes, **options)
    optimizer = training.optimizer()
    skipped = []
    for step in range(3):
        training.set_gradients(step)
        if step == 1 and dist.get_rank() == rank:
            local(training.params[bad].grad).view(-1)[-1] = value
        is_skipped, nothing_moved = training.step(optimizer)
        assert is_skipped == nothing_moved
        skipped.append(is_skipped)
    assert training.scaler.get_scale() == SCALE * 0.5 ** sum(skipped)
    return skipped


FLOAT32, MIXED = [torch.float32], [torch.float32, torch.float64]
PLACES = {
    "in a shard": ("rows", 2, FLOAT32, (1, 1)),
    "in the head": ("rows", 3, FLOAT32, (0, 3)),
    "in a shard that has copies": ("copies of rows", 4, FLOAT32, (1, 1)),
    "where two dimensions cut": ("rows and columns", 4, FLOAT32, (3, 1)),
    "in the first of two meshes": ("two meshes", 4, FLOAT32, (3, 1)),
    "in the second of two meshes": ("two meshes", 4, FLOAT32, (3, 4)),
    "in a tensor that is not sharded": ("some not sharded", 2, FLOAT32, (1, 0)),
    "beside tensors that are not sharded": ("some not sharded", 2, FLOAT32, (1, 1)),
    # two tables, of two backends
    "of 32 bits, beside 64": ("some not sharded", 2, MIXED, (1, 0)),
    "of 64 bits, beside 32": ("some not sharded", 2, MIXED, (1, 1)),
    "of 32 bits, beside 64, in a shard": ("two meshes", 4, MIXED, (2, 0)),
}


@pytest.mark.parametrize("value", [math.inf, math.nan])
@by_backend
@pytest.mark.parametrize("place", PLACES)
def test_all_ranks_skip(ranks: Ranks, place: str, backend: str, value: float) -> None:
    layout, world, dtypes, at = PLACES[place]
    chosen = "auto" if dtypes is MIXED and backend == "cpu" else backend
    found = ranks(world, _skipped, layout, chosen, dtypes, at, value, {})
    assert found == [[False, True, False]] * world


def _waits_and_skips(backend: str, kind: str, first: bool) -> list[bool]:
    training = _Training("rows", backend, FLOAT32)
    body, _ = training.groups
    body.update({"update_every": 2, "update_every_grads": kind})
    optimizer = training.optimizer()
    skipped = []
    for step in range(4):
        training.set_gradients(step)
        is_bad = step == (0 if first else 1)
        if is_bad and dist.get_rank() == 1:
            local(training.params[1].grad)[0, 0] = -math.inf
        is_skipped, nothing_moved = training.step(optimizer)
        assert is_skipped == nothing_moved  # the head moves otherwise
        skipped.append(is_skipped)
    return skipped


@by_backend
@pytest.mark.parametrize("kind", ["latest", "mean"])
@pytest.mark.parametrize("first", [True, False])
def test_gradients_that_wait_count(ranks: Ranks, backend: str, kind: str, first: bool) -> None:
    expected = [first, not first, False, False]
    assert ranks(2, _waits_and_skips, backend, kind, first) == [expected] * 2


def _only_one_rank_has_gradients(backend: str, value: float) -> tuple[bool, float]:
    training = _Training("rows", backend, FLOAT32)
    optimizer = training.optimizer()
    training.set_gradients(0)
    if dist.get_rank() == 0:
        local(training.params[1].grad)[0, 0] = value
    else:
        for p in training.params:
            p.grad = None
    training.scaler.step(optimizer)
    training.scaler.update()
    return bool(optimizer.last_step.skipped), training.scaler.get_scale()


@by_backend
def test_a_rank_without_gradients_skips_as_well(ranks: Ranks, backend: str) -> None:
    found = ranks(2, _only_one_rank_has_gradients, backend, math.inf)
    assert found == [(True, SCALE / 2)] * 2
    assert ranks(2, _only_one_rank_has_gradients, backend, 1.0) == [(False, SCALE)] * 2
