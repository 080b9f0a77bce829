"""The finetune experiment: what chooses rates, its verdict, and what fails it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from paths import EXPERIMENT_RESULTS, ROOT

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from stackelberg_fused.benchmarks.experiments.experiment import Cells
from stackelberg_fused.benchmarks.experiments.finetune import SWEPT, TEST, Finetune, _key
from stackelberg_fused.benchmarks.experiments.finetune_arms import (
    ARMS,
    HEAD_ONLY,
    ONE_RATE,
    PROBES_FIRST,
    Arm,
)

pytestmark = pytest.mark.slow  # each part of it is a run


def made_up(experiment: Finetune, gains: dict[Arm, float], shift: str = "rotated") -> Cells:
    """Return cells in which the second rate of a grid is the best, and arms gain so many points at one shift."""
    draw = random.Random(0)
    cells: Cells = {}
    for task in experiment.tasks:
        levels = [0.5 + 0.1 * draw.random() for _ in task.seeds]
        for name in task.grids:
            for arm in experiment.arms:
                exponents = arm.exponents(task.grids[name])
                cells[_key(task, name, arm, "tuning")] = {
                    f"{e:g}": [[1.0, 0.5 - 0.01 * abs(place - 1)]] * len(experiment.tuning_seeds)
                    for place, e in enumerate(exponents)
                }
                # everything learns more than the head alone
                alone = -0.1 * (arm == HEAD_ONLY)
                cells[_key(task, name, arm, "evaluation")] = {
                    test: [
                        level
                        + 0.01 * draw.random()
                        + (gains.get(arm, 0.0) / 100 if test == shift else alone)
                        for level in levels
                    ]
                    for test in (TEST, *task.shifts)
                }
                if arm in SWEPT:
                    cells[_key(task, name, arm, "tests by rate")] = {
                        f"{e:g}": {test: [0.5] * 4 for test in (TEST, *task.shifts)}
                        for e in task.grids[name]
                    }
    return cells


def test_a_gain_out_of_distribution_survives() -> None:
    experiment = Finetune(quick=False)
    cells = made_up(experiment, {PROBES_FIRST[0]: 5.0, ONE_RATE: 0.0})
    assert experiment.check(cells) == []
    *lines, last = experiment.verdict(cells)
    assert lines[0].startswith("digits, AdamW, rotated, points to one rate: head first (25%")
    assert "all +5." in lines[0]
    assert "head only" in lines[0]
    assert last.endswith("survives the tuning of one rate in 2 of 24 comparisons.")


def test_a_loss_is_no_gain() -> None:
    experiment = Finetune(quick=False)
    cells = made_up(experiment, {PROBES_FIRST[0]: -5.0, HEAD_ONLY: 5.0})
    assert experiment.verdict(cells)[-1].endswith("in 0 of 24 comparisons.")


def test_p_is_that_of_all_arms() -> None:
    """Twenty differences of one sign: one hit in 10 001, times eleven."""
    experiment = Finetune(quick=False)
    cells = made_up(experiment, {PROBES_FIRST[0]: 5.0})
    task = experiment.tasks[0]
    mean, half, p = experiment.gain(cells, task, "SGD", PROBES_FIRST[0], "rotated")
    assert mean == pytest.approx(5.0, abs=0.5)
    assert 0 < half < 0.5
    assert p == pytest.approx(11 / 10_001)
    assert experiment.gain(cells, task, "SGD", ONE_RATE, "rotated")[::2] == (0.0, 1.0)


def test_the_validation_set_alone_chooses() -> None:
    """By accuracy, the smallest of those that are alike, with seeds that nobody judges."""
    experiment = Finetune(quick=False)
    cells = made_up(experiment, {HEAD_ONLY: 30.0})
    task = experiment.tasks[0]
    assert experiment.exponent(cells, task, "SGD", HEAD_ONLY) == task.grids["SGD"][1]
    tuned = cells[_key(task, "SGD", HEAD_ONLY, "tuning")]
    tuned["0"] = tuned["-2"] = [[9.9, 0.9]]
    assert experiment.exponent(cells, task, "SGD", HEAD_ONLY) == -2.0
    for judged in (task.seeds for task in experiment.tasks):
        assert not set(experiment.tuning_seeds) & set(judged)
        assert len(judged) >= 10


def test_one_rate_has_as_many_points_as_both_phases_of_head_first() -> None:
    for task in Finetune(quick=False).tasks:
        for grid in task.grids.values():
            points = {arm: len(arm.exponents(grid)) for arm in ARMS}
            for arm in PROBES_FIRST:
                assert points[ONE_RATE] >= points[arm] + points[HEAD_ONLY] - 1
            assert set(HEAD_ONLY.exponents(grid)) < set(ONE_RATE.exponents(grid))


@pytest.mark.parametrize("place", [0, -1])
def test_a_best_rate_at_an_end_of_the_grid_fails(place: int) -> None:
    experiment = Finetune(quick=False)
    cells = made_up(experiment, {})
    tuned = cells[_key(experiment.tasks[1], "AdamW", HEAD_ONLY, "tuning")]
    tuned[list(tuned)[place]] = [[0.1, 0.9]]
    assert experiment.check(cells) == [
        "text, AdamW, head only: the best rate is at an end of the grid"
    ]


def test_a_run_that_has_learned_nothing_fails() -> None:
    experiment = Finetune(quick=False)
    cells = made_up(experiment, {})
    evaluated = cells[_key(experiment.tasks[0], "AdamW", ONE_RATE, "evaluation")]
    evaluated[TEST] = [0.19, 0.21] * 10
    first, second = experiment.check(cells)
    assert first == "digits, AdamW, one rate: no better than chance"
    assert second.startswith("digits, AdamW: in distribution 20.0 % with everything trained")


def committed() -> tuple[Finetune, Any]:
    result = json.loads((EXPERIMENT_RESULTS / "finetune.json").read_text())
    return Finetune(quick=False), result


def test_the_committed_run_is_one_of_this_protocol() -> None:
    experiment, result = committed()
    settings = result["settings"]
    assert settings["arms"] == [arm.label for arm in experiment.arms]
    assert settings["tuning_seeds"] == list(experiment.tuning_seeds)
    for task in experiment.tasks:
        assert settings["tasks"][task.name]["steps"] == task.steps
        assert settings["tasks"][task.name]["seeds"] == list(task.seeds)
        for name, grid in task.grids.items():
            assert settings["tasks"][task.name]["exponents"][name] == list(grid)


def test_documented_figures_are_those_of_the_committed_run() -> None:
    experiment, result = committed()
    text = (ROOT / "docs" / "results.md").read_text()
    for table in experiment.tables(result["cells"]):
        for row in zip(*(column.cells for column in table.columns), strict=True):
            line = f"| {' | '.join(map(str, row))} |".replace(" |  |", " | |").replace(
                "|  |", "| |"
            )
            assert line in text, table.title
