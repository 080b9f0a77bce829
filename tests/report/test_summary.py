"""The sentence, the table and the warnings of a page."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from recorded_run import record

from stackelberg_fused.report.recorder import Recorder
from stackelberg_fused.report.run_folder import read
from stackelberg_fused.report.summary import conditions, table, verdict


def test_the_lowest_loss_wins_by_as_much_as_it_does(tmp_path: Path) -> None:
    record(tmp_path)
    arms = read(tmp_path)
    losses = [arm.evaluations[-1].values["loss"] for arm in arms]
    below = 100 * (1 - losses[1] / losses[0])
    assert verdict(arms) == (
        f"Lowest final validation loss: ratio 10, {losses[1]:.4f}, {below:.1f} % below one rate. "
        "One run each: how much of any gap is luck is unknown."
    )
    assert conditions(arms) == []


def test_the_table_compares_equal_steps(tmp_path: Path) -> None:
    record(tmp_path)
    arms = read(tmp_path)
    found = table(arms)
    assert found.headings == [
        *("run", "lr", "25%\n100", "50%\n200", "75%\n300", "100%\n400"),
        *("to one rate", "step, µs"),
    ]
    at = {row.step: row.values["loss"] for row in arms[1].evaluations}
    # evaluations come every 40 steps: the last one at or before
    assert found.rows[1][2:6] == [f"{at[step]:.4f}" for step in (80, 200, 280, 400)]
    assert found.rows[1][-1] == "101"
    assert (
        found.rows[1][6] == f"−{100 * (1 - at[400] / arms[0].evaluations[-1].values['loss']):.1f} %"
    )
    assert {(1, column) for column in (3, 4, 5)} <= found.best


def test_an_old_loss_is_not_that_of_a_later_step(tmp_path: Path) -> None:
    for arm, evaluations in (("rare", (0, 400)), ("often", (100, 200, 300, 400))):
        with Recorder(tmp_path, arm, steps=400) as recorder:
            for step in range(401):
                if step:
                    recorder.step(step, 1.0)
                if step in evaluations:
                    recorder.evaluation(step, 1000.0 - step)
    rare, often = sorted(table(read(tmp_path)).rows, reverse=True)
    assert rare[1:5] == ["–", "–", "–", "600.0000"]
    assert often[1:5] == ["900.0000", "800.0000", "700.0000", "600.0000"]


def test_interrupted_runs_are_compared_where_all_were(tmp_path: Path) -> None:
    record(tmp_path, made=200)
    arms = read(tmp_path)
    assert verdict(arms).startswith(
        "At step 200, the last that every run reached, lowest validation"
    )
    assert conditions(arms) == [
        "ratio 10 has no end: it is still running, or was killed, after step 200 of 400."
    ]
    assert table(arms).rows[1][4:7] == ["–", "–", "–"]


def test_a_diverged_run_is_named(tmp_path: Path) -> None:
    record(tmp_path, diverges="ratio 10")
    arms = read(tmp_path)
    assert "lowest" not in verdict(arms)
    assert verdict(arms).startswith("Lowest final validation loss: one rate, ")
    assert "Diverged: ratio 10." in verdict(arms)
    assert conditions(arms) == ["ratio 10: the training loss is not finite from step 201 on."]
    assert table(arms).rows[1][5:7] == ["not finite", "–"]


@pytest.mark.parametrize("count", [1, 2])
def test_all_diverged(count: int, tmp_path: Path) -> None:
    for arm in "ab"[:count]:
        with Recorder(tmp_path, arm) as recorder:
            recorder.step(1, math.nan)
    runs = "The run" if count == 1 else "Every run"
    assert verdict(read(tmp_path)) == f"{runs} diverged: the last loss is not finite."


def test_one_run_and_trials_claim_nothing(tmp_path: Path) -> None:
    record(tmp_path / "one", ("alone",))
    assert verdict(read(tmp_path / "one")).endswith("after 400 steps, 4 at the start.")
    assert not table(read(tmp_path / "one")).best
    record(tmp_path / "short", steps=20)
    assert verdict(read(tmp_path / "short")).startswith("20 steps show that it runs: too few")


def test_what_went_wrong_is_said(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "a", steps=9)
    for step in range(5, 9):
        recorder.step(step, math.nan if step == 6 else 1.0)
        recorder._waiting[-1]["skipped"] = float(step < 7)
    recorder.close(finished=False)
    with recorder.path.open("a") as file:
        file.write("{\n")
    assert conditions(read(tmp_path)) == [
        "a was stopped after step 8 of 9.",
        "a: the training loss is not finite at 1 steps, first at 6.",
        "a: the gradient scaler had 2 steps skipped.",
        "a: the steps before 5 were not recorded.",
        "a.steps.jsonl: 1 line could not be read.",
    ]
