"""Digits and language: the grid of rates, paired seeds, and columns."""

from __future__ import annotations

import json
from typing import Any

import pytest
from paths import EXPERIMENT_RESULTS

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from stackelberg_fused.benchmarks.experiments.arm import Arm
from stackelberg_fused.benchmarks.experiments.training import Digits, Language, train


def test_the_grid_of_rates_is_extended_until_the_best_is_inside() -> None:
    digits = Digits(quick=False)
    cells: dict[str, Any] = {}
    wanted = -8  # below the grid's first exponent
    stages = digits.stages(cells)
    sizes = []
    for stage in stages:
        sizes.append(len(stage))
        for cell in stage:
            exponent = next(e for e in range(-16, 8) for s in range(6)
                            if cell.key in {arm.key(e, s) for arm in digits.arms})  # fmt: skip
            cells[cell.key] = {
                "train_loss": abs(exponent - wanted),
                "test_loss": 1.0,
                "accuracy": 0.5,
            }
    assert all(digits.best(cells, arm) == wanted for arm in digits.arms)
    assert not any("end of the grid" in line for line in digits.check(cells))
    assert len(sizes) > 3


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
    cells = json.loads((EXPERIMENT_RESULTS / f"{name}.json").read_text())["cells"]
    for table in kind.tables(cells):
        assert sum("loss" in str(column.header) for column in table.columns) == losses
        assert len(table.columns) == 3 + losses + 1
