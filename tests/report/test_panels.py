"""Which charts a run has, of which points, and what it says is missing."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from recorded_run import record

from stackelberg_fused.report.panels import MOST_LINES, POINTS, Panel, panels, thinned
from stackelberg_fused.report.recorder import Recorder
from stackelberg_fused.report.run_folder import read


def by_title(folder: Path) -> tuple[dict[str, Panel], list[str]]:
    found, missing = panels(read(folder))
    return {panel.title: panel for panel in found}, missing


def test_everything_that_is_recorded_has_a_panel(tmp_path: Path) -> None:
    record(tmp_path)
    found, missing = by_title(tmp_path)
    assert list(found) == [
        "Validation loss",
        "Training loss",
        "Learning rates",
        "Gradient norm, body",
        "Gradient norm, head",
        "Clip factor, body",
        "Clip factor, head",
        "Follower gap",
        "Accuracy",
        "Time of an optimizer step",
    ]
    assert not missing
    for panel in found.values():
        assert {line.arm for line in panel.lines} == {0, 1}
        assert all(0 < len(line.points) <= POINTS for line in panel.lines)
    rates = found["Learning rates"]
    assert [line.label for line in rates.lines] == [
        *("one rate, body", "one rate, head"),
        *("ratio 10, body", "ratio 10, head"),
    ]
    assert [line.style for line in rates.lines] == [1, 0, 1, 0]
    norms = [found[f"Gradient norm, {role}"].scale for role in ("body", "head")]
    assert norms[0] == norms[1]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        recorder.step(1, 0.5)
    found, missing = by_title(tmp_path)
    assert list(found) == ["Training loss"]
    said = " ".join(missing)
    for name in (
        "Validation loss",
        "Learning rates",
        "Gradient norms",
        "Clip factors",
        "Follower gap",
    ):
        assert f"{name}:" in said
    with Recorder(tmp_path) as recorder:
        recorder.step(1, 0.5, clip_factor={"body": 1.0, "head": 1.0})
    assert "Clip factors: all were 1, so nothing was clipped." in by_title(tmp_path)[1]


def test_points_are_of_steps_in_order_and_keep_what_is_not_finite() -> None:
    points = [(step, float(step % 7)) for step in range(1, 1001)]
    points[500] = (501, math.nan)
    found = thinned(points, 5, statistics.fmean)
    assert [step for step, _ in found] == list(range(5, 1001, 5))
    assert [i for i, (_, value) in enumerate(found) if math.isnan(value)] == [100]
    assert found[0][1] == pytest.approx(statistics.fmean(value for _, value in points[:5]))
    assert thinned(points[:3], 5, statistics.fmean) == [(3, 2.0)]


def test_a_loss_that_falls_steeply_is_shown_from_where_it_is_flat(tmp_path: Path) -> None:
    record(tmp_path)
    panel = by_title(tmp_path)[0]["Training loss"]
    assert panel.scale.high < 3
    assert panel.notes[0] == "Each point is the mean of 2 recorded steps."
    assert panel.notes[1].startswith("Outside of the frame, above: up to 3.9")
    with Recorder(tmp_path, "low") as recorder:
        for step in range(1, 101):
            recorder.step(step, 1.0, extra=0.5 if step > 5 else -9.0)
    assert by_title(tmp_path)[0]["Extra"].notes == [
        "Outside of the frame, below: down to −9 at step 1."
    ]


def test_groups_that_share_a_rate_share_a_line_and_many_are_left_out(tmp_path: Path) -> None:
    rates = {f"layer {i}": 0.1 * (i + 1) for i in range(12)}
    for arm in ("a", "b"):
        with Recorder(tmp_path, arm) as recorder:
            for step in (1, 2):
                recorder.step(step, 1.0, rate={**rates, "twin": 0.1})
    panel = by_title(tmp_path)[0]["Learning rates"]
    assert len(panel.lines) == MOST_LINES
    assert panel.lines[0].label == "a, layer 0, twin"
    assert panel.notes[0] == "8 more lines are left out."
    with Recorder(tmp_path, "b") as recorder:
        recorder.step(1, 1.0, rate={"body": 0.1, "head": 0.1})
    assert by_title(tmp_path)[0]["Learning rates"].lines[-1].label == "b"


def test_a_run_that_is_never_finite_has_a_page_too(tmp_path: Path) -> None:
    with Recorder(tmp_path) as recorder:
        for step in range(1, 4):
            recorder.step(step, math.nan, rate=math.inf)
    found, _ = by_title(tmp_path)
    assert all(math.isfinite(panel.scale.high) for panel in found.values())


def test_steps_without_a_turn_do_not_halve_the_norm(tmp_path: Path) -> None:
    with Recorder(tmp_path, steps=2 * POINTS) as recorder:
        for step in range(1, 2 * POINTS + 1):
            norms = {"body": 0.0 if step % 2 else 3.0, "head": 0.0}
            recorder.step(step, 1.0, grad_norm=norms)
    found, _ = by_title(tmp_path)
    body, head = (found[f"Gradient norm, {role}"] for role in ("body", "head"))
    assert {value for _, value in body.lines[0].points} == {3.0}
    assert {value for _, value in head.lines[0].points} == {0.0}
    assert body.notes[0] == (
        "Each point is the mean, zeros (no turn) left out, of 2 recorded steps."
    )
