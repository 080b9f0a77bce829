"""Rows of backward pass and step: runs are alike, and a wrong step is not timed."""

from __future__ import annotations

from bench_rows import with_wrong_step
from stackelberg_fused.benchmarks import backward, report
from stackelberg_fused.benchmarks.models import quick_training_workloads
from stackelberg_fused.benchmarks.preparation import PARITY_FAILED, TIMED, MeasurementSettings


def test_runs_are_alike_and_gradients_end_as_they_say():
    workload = quick_training_workloads()[0]
    contestants = backward.backward_contestants("cpu")
    runs = [backward.TrainingRun(c, workload, "cpu") for c in contestants]
    for run in runs:
        run.forward()
    assert len({run._loss.item() for run in runs}) == 1
    for contestant, run in zip(contestants, runs, strict=True):
        run.backward_and_step()
        assert all((p.grad is not None) == ("flat" in contestant.name) for p in run.params)


def test_a_wrong_step_after_a_backward_pass_is_not_timed():
    wrong = with_wrong_step(backward.backward_contestants("cpu")[0], 1e-3)
    run, record = backward._prepare(wrong, quick_training_workloads()[1], "cpu")
    assert run is None
    assert record["status"] == PARITY_FAILED


def test_contestants_that_release_gradients_are_compared():
    settings = MeasurementSettings(rounds=3, seconds=0.05, compile=False, compile_seconds=30)
    row = backward.run_row(quick_training_workloads()[1], settings)
    assert {entry["status"] for entry in row["entries"]} == {TIMED}
    assert [record["quantity"] for record in row["release"]] == [*backward.RELEASE_BOUNDS]
    assert any("release: target <= 1.05" in line for line in report.lines(row))
