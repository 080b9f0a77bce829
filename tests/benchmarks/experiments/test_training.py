"""Digits and language: the grid of rates, paired seeds, and columns."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from paths import EXPERIMENT_RESULTS

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from stackelberg_fused.benchmarks.experiments.arm import Arm
from stackelberg_fused.benchmarks.experiments.training import (
    EXPONENTS,
    Digits,
    Language,
    Training,
    train,
)


def _complete(kind: Training, cells: dict[str, Any], score: Callable[[int, int], float]) -> int:
    """Fill cells by exponent and seed; return the number of stages."""
    keys = {
        arm.key(e, s): (e, s)
        for arm in kind.arms
        for e in EXPONENTS
        for s in (*kind.tuning_seeds, *range(1, kind.seeds + 1))
    }
    stages = 0
    for stage in kind.stages(cells):
        stages += 1
        for cell in (cell for cell in stage if cell.key not in cells):
            loss = score(*keys[cell.key])
            cells[cell.key] = {"train_loss": loss, "test_loss": loss, "accuracy": 0.5}
    return stages


def test_the_grid_of_rates_is_extended_until_the_best_is_inside() -> None:
    digits = Digits(quick=False)
    cells: dict[str, Any] = {}
    wanted = -8  # below the grid's first exponent
    assert _complete(digits, cells, lambda exponent, _: abs(exponent - wanted) / 10) > 3
    assert all(digits.best(cells, arm) == wanted for arm in digits.arms)
    assert digits.check(cells) == []
    assert all(cell.key in cells for stage in digits.stages(cells) for cell in stage), "unfinished"


@pytest.mark.parametrize("bad", [1.0, math.inf])
def test_no_rate_is_chosen_by_one_seed_alone(bad: float) -> None:
    """The first tuning seed likes a rate that others do not survive."""
    digits = Digits(quick=False)
    first = digits.tuning_seeds[0]
    assert len(digits.tuning_seeds) >= 3
    cells: dict[str, Any] = {}

    def score(exponent: int, seed: int) -> float:
        if exponent == -4:
            return 0.1 if seed == first else bad
        return 0.2 + 0.1 * abs(exponent + 6)

    _complete(digits, cells, score)
    for arm in digits.arms:
        # the neighbour of what the first seed chose is not the best of all: the search goes on to it
        assert digits.best(cells, arm) == -6
        for exponent in range(-7, -2):
            assert all(arm.key(exponent, seed) in cells for seed in digits.tuning_seeds)
        # judged at the best rate by seeds that chose nothing
        assert all(arm.key(-6, seed) in cells for seed in range(1, digits.seeds + 1))
        assert not any(arm.key(-4, seed) in cells for seed in range(1, digits.seeds + 1))
    assert not set(digits.tuning_seeds) & set(range(1, digits.seeds + 1))


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_finished_run_has_nothing_left_to_do(quick: bool, seed: int) -> None:
    digits, cells = Digits(quick=quick), dict[str, Any]()
    scores = random.Random(seed)
    _complete(digits, cells, lambda exponent, _: abs(exponent + 5) / 9 + scores.random())
    count = len(cells)
    assert _complete(digits, cells, lambda *_: 0.0) == 2, "more than the grid and the judged seeds"
    assert len(cells) == count


def test_runs_of_a_seed_begin_alike() -> None:
    """Ratios are compared pair by pair: at a rate of almost nothing they are the same run."""
    digits = Digits(quick=True)

    runs = [train(digits.task, Arm("SGD", mode, ratio), -16, 3, 2, False)
            for mode in ("simultaneous", "alternating") for ratio in (1, 3)]  # fmt: skip
    for other in runs[1:]:
        assert other["train_loss"] == pytest.approx(runs[0]["train_loss"], rel=1e-6)


@pytest.mark.parametrize("name, losses", [("digits", 2), ("language", 1)])
def test_no_loss_is_a_column_twice(name: str, losses: int) -> None:
    kind = {"digits": Digits, "language": Language}[name](quick=False)
    result = json.loads((EXPERIMENT_RESULTS / f"{name}.json").read_text())
    kind.adopt(result["settings"])
    for table in kind.tables(result["cells"]):
        assert sum("loss" in str(column.header) for column in table.columns) == losses
        assert len(table.columns) == 3 + losses + 1


def test_a_result_is_shown_by_the_seeds_that_chose_its_rates() -> None:
    chosen = {}
    for kind in (Digits(quick=False), Language(quick=False)):
        result = json.loads((EXPERIMENT_RESULTS / f"{kind.name}.json").read_text())
        kind.adopt(result["settings"])
        assert len(kind.tuning_seeds) == 3
        cells = result["cells"]
        assert all(cell.key in cells for stage in kind.stages(cells) for cell in stage)
        chosen[kind.name] = kind.best(cells, Arm("SGD", "simultaneous", 1))
        assert kind.check(cells) == []
    assert chosen == {"digits": -1, "language": -1}
