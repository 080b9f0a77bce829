"""Rows of DTensors: what they are, and that every contestant makes the reference's step on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from bench_rows import ROWS
from needs import needs_gloo
from stackelberg_fused.benchmarks.parity import reference_step
from stackelberg_fused.benchmarks.preparation import (
    TIMED,
    MeasurementSettings,
    PreparedContestant,
    gradient_sets,
    prepare,
)
from stackelberg_fused.benchmarks.sharded import mesh_of, sharded_contestants
from stackelberg_fused.benchmarks.workloads import TORCH_FUSED, UNSHARDED, Target, Workload

dist = torch.distributed


@pytest.mark.parametrize("mesh", [(1,), (1, 1)])
def test_600_shards_have_the_targets_of_the_design(mesh):
    (row,) = [r for r in ROWS.values() if r.mesh == mesh and len(r.shapes) == 600]
    assert row.new_gradients
    assert row.targets == (Target(TORCH_FUSED, 12.0), Target(UNSHARDED, 1.5))


def test_a_ratio_to_ours_without_shards_is_at_most_its_bound():
    target = Target(UNSHARDED, 1.5)
    assert target.met_by(1.5)
    assert not target.met_by(1.6)
    assert not target.is_counted


@pytest.fixture
def _own_group() -> Iterator[None]:
    """The process group that a row begins ends with the test, or others could not begin theirs."""
    yield
    mesh_of.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()


@needs_gloo
@pytest.mark.usefixtures("_own_group")
@pytest.mark.parametrize("mesh", [(1,), (1, 1)])
def test_every_contestant_makes_the_references_step(mesh):
    from torch.distributed.tensor import DTensor

    workload = Workload("tiny", ((3, 5), (7,)), (0, 1), 1, mesh=mesh, new_gradients=True)
    start = workload.start("cpu", 1)
    grads = gradient_sets(workload, "cpu", 1)
    contestants = sharded_contestants()
    reference = next(c for c in contestants if c.name == "ours reference")
    expected = reference_step(reference, workload, start, grads[0])
    for contestant in contestants:
        prepared, record = prepare(
            contestant, workload, MeasurementSettings(), start, grads[0], expected
        )
        assert record["status"] == TIMED, record["reason"]
        assert isinstance(prepared, PreparedContestant)
        is_sharded = contestant.name != UNSHARDED
        assert all(isinstance(p, DTensor) is is_sharded for p in prepared.params)
        action = prepared.action("cpu", *grads)
        action.setup()
        for p in prepared.params:
            assert isinstance(p.grad, DTensor) is is_sharded
            assert not is_sharded or p.grad._spec is p._spec
        action.call()
