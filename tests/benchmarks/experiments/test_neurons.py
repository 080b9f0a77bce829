"""The neurons experiment: what is tuned with which seeds, its verdict, and what fails it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from paths import EXPERIMENT_RESULTS, ROOT

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from stackelberg_fused.benchmarks.experiments.experiment import Cells
from stackelberg_fused.benchmarks.experiments.neuron_arms import (
    AS_PUBLISHED,
    EXACT_HEAD,
    ONE_RATE,
    Arm,
    evaluated_arms,
    tuned_arms,
)
from stackelberg_fused.benchmarks.experiments.neuron_training import MOMENTS
from stackelberg_fused.benchmarks.experiments.neurons import Neurons
from stackelberg_fused.benchmarks.experiments.statistics import quartiles

FAST = Arm("simultaneous", 100)


def made_up(experiment: Neurons, losses: dict[Arm, float], **tuning: float) -> Cells:
    """Return cells in which the middle rate is the best, and arms have these losses, 1 if they are not given.

    Args:
        tuning: by label, another loss with the tuning seeds.
    """
    cells: Cells = {}
    for problem in experiment.problems:
        for arm in evaluated_arms(problem):
            loss = losses.get(arm, 1.0)
            tuned = cells.setdefault(f"{problem.name}, {arm.mode}, tuning", {})
            exponents = arm.exponents(problem)
            best = exponents[len(exponents) // 2]
            if not arm.published:
                tuned[arm.label] = {
                    str(e): [tuning.get(arm.label, loss) + abs(e - best)]
                    * len(experiment.tuning_seeds)
                    for e in exponents
                }
            evaluated = cells.setdefault(f"{problem.name}, {arm.mode}, evaluation", {})
            # no two differences are alike
            evaluated[arm.label] = {
                "losses": [[loss * (1 + 0.001 * seed) for seed in experiment.seeds]]
            }
    return cells


def test_the_gain_of_an_arm_that_is_better_survives() -> None:
    experiment = Neurons(quick=False)
    cells = made_up(experiment, {AS_PUBLISHED: 2.0, FAST: 0.5})
    assert experiment.check(cells) == []
    for problem, line in zip(experiment.problems, experiment.verdict(cells), strict=True):
        assert "two time scales survives the tuning" in line
        assert "1.01 at one tuned rate, 0.507 at ratio 100" in line
        assert experiment.p_value(cells, problem, FAST) < 0.001
        assert experiment.p_value(cells, problem, EXACT_HEAD) == 1.0


def test_the_gain_over_an_untuned_rate_alone_does_not_survive() -> None:
    experiment = Neurons(quick=False)
    cells = made_up(experiment, {AS_PUBLISHED: 2.0, FAST: 1.0})
    assert all("does not survive" in line for line in experiment.verdict(cells))
    (failure,) = experiment.check(cells)
    assert failure.startswith("1-D: ")
    assert failure.endswith("is not told apart from one tuned rate")


def test_the_ratio_is_chosen_with_the_tuning_seeds() -> None:
    """Not by what came out with the others."""
    experiment = Neurons(quick=False)
    lucky = Arm("simultaneous", 10)
    cells = made_up(experiment, {lucky: 0.1, FAST: 0.5}, **{lucky.label: 0.9})
    for problem in experiment.problems:
        assert experiment.two_time_scales(cells, problem) == FAST
    assert "at ratio 100, which the tuning seeds chose" in experiment.verdict(cells)[0]
    assert not set(experiment.tuning_seeds) & set(experiment.seeds)
    assert len(experiment.tuning_seeds) >= 5
    assert len(experiment.seeds) >= 20


@pytest.mark.parametrize("losses", [{AS_PUBLISHED: 0.4, FAST: 0.5}, {AS_PUBLISHED: 0.5, FAST: 0.5}])
def test_a_run_that_does_not_repeat_the_published_effect_fails(losses: dict[Arm, float]) -> None:
    experiment = Neurons(quick=False)
    failures = experiment.check(made_up(experiment, losses))
    assert failures == [
        f"{problem.name}: ratio 100 is not better than one rate as published"
        for problem in experiment.problems
    ]


def test_a_best_rate_at_an_end_of_the_grid_fails() -> None:
    experiment = Neurons(quick=False)
    cells = made_up(experiment, {AS_PUBLISHED: 2.0, FAST: 0.5})
    tuned = cells["2-D, alternating, tuning"]["head first, ratio 10"]
    tuned[max(tuned, key=int)] = [0.0]
    assert experiment.check(cells) == [
        "2-D, head first, ratio 10: the best rate is at an end of the grid"
    ]
    for values in tuned.values():
        values[:] = [float("inf")]
    assert "2-D, head first, ratio 10: diverged at every rate" in experiment.check(cells)


def test_every_arm_has_the_same_steps_and_its_own_rate() -> None:
    experiment = Neurons(quick=False)
    for problem in experiment.problems:
        modes = {arm.mode for arm in tuned_arms(problem)}
        assert modes == {"simultaneous", "alternating", "exact head"}
        assert ONE_RATE in tuned_arms(problem)
        for arm in tuned_arms(problem):
            body, head = arm.rates(-4)
            assert body == pytest.approx(0.01 if arm == EXACT_HEAD else head / arm.ratio)
    assert json.dumps(experiment.settings())


def test_a_costly_problem_has_the_first_seeds_only() -> None:
    experiment = Neurons(quick=False)
    ten = next(problem for problem in experiment.problems if problem.name == "10-D")
    for problem in experiment.problems:
        tuning, judged = experiment.tuning_seeds_of(problem), experiment.seeds_of(problem)
        if problem != ten:
            assert (tuning, judged) == (experiment.tuning_seeds, experiment.seeds)
    assert 2 <= len(tuning_seeds := experiment.tuning_seeds_of(ten)) < len(experiment.tuning_seeds)
    assert 8 <= len(seeds := experiment.seeds_of(ten)) < len(experiment.seeds)
    assert not set(tuning_seeds) & set(seeds)
    settings = experiment.settings()["problems"]
    assert settings["10-D"]["first_tuning_seeds"] == len(tuning_seeds)
    assert settings["10-D"]["first_seeds"] == len(seeds)
    assert "first_seeds" not in settings["2-D"]


def test_a_quick_run_fails_if_an_exact_head_is_no_better() -> None:
    """As it would be if gradients or heads were wrong; for other heads a quick run is too short."""
    experiment = Neurons(quick=True)
    fast = experiment.problems[0].ratios["simultaneous"][1]
    losses = {AS_PUBLISHED: 2.0, Arm("simultaneous", fast): 0.5}
    assert experiment.check(made_up(experiment, losses)) == []
    assert experiment.check(made_up(experiment, {**losses, EXACT_HEAD: 2.0})) == [
        f"{problem.name}: exact head is not better than one rate as published"
        for problem in experiment.problems[1:]
    ]


def test_a_small_run_tells_two_time_scales_from_one_rate() -> None:
    """And not one rate from itself."""
    experiment = Neurons(quick=True)
    problem = replace(experiment.problems[0], steps=4000)
    experiment.problems = (problem,)
    cells: dict[str, Any] = {}
    for stage in experiment.stages(cells):
        for cell in stage:
            if "simultaneous" in cell.key:
                cells[cell.key] = cell.work()
    fast = experiment.two_time_scales(cells, problem)
    assert "survives" in experiment.verdict(cells)[0]
    assert experiment.median(cells, problem, fast) < 0.7 * experiment.median(
        cells, problem, ONE_RATE
    )
    assert experiment.p_value(cells, problem, ONE_RATE) == 1.0
    evaluated = cells["1-D, simultaneous, evaluation"]
    evaluated[fast.label] = evaluated[ONE_RATE.label]
    assert "does not survive" in experiment.verdict(cells)[0]


def test_documented_figures_are_those_of_the_committed_run() -> None:
    result = json.loads((EXPERIMENT_RESULTS / "neurons.json").read_text())
    experiment = Neurons(quick=False)
    text = (ROOT / "docs" / "results.md").read_text()
    for problem, table in zip(experiment.problems, experiment.tables(result["cells"]), strict=True):
        rows = zip(*(column.cells for column in table.columns), strict=True)
        for row in rows:
            assert f"| {' | '.join(map(str, row))} |".replace(" |  |", " | |") in text, problem.name


def test_documented_gains_are_those_of_the_committed_run() -> None:
    cells = json.loads((EXPERIMENT_RESULTS / "neurons.json").read_text())["cells"]
    experiment = Neurons(quick=False)
    problems = {problem.name: problem for problem in experiment.problems}
    fast = {name: experiment.two_time_scales(cells, problem) for name, problem in problems.items()}
    gain = {
        name: experiment.median(cells, problem, ONE_RATE)
        / experiment.median(cells, problem, fast[name])
        for name, problem in problems.items()
    }
    p = {name: experiment.p_value(cells, problems[name], arm) for name, arm in fast.items()}
    # wherever lines break
    front, results, recipes = (
        " ".join((ROOT / page).read_text().split())
        for page in ("README.md", "docs/results.md", "docs/recipes.md")
    )
    assert all(f"{gain['1-D']:.0f} times lower" in page for page in (front, results, recipes))
    assert f"{gain['2-D']:.1f} times lower (2-D) and {gain['ReLU']:.1f} times (ReLU)" in front
    assert f"{gain['2-D']:.1f} and {gain['ReLU']:.1f} times on two other problems" in recipes
    assert fast["1-D"].label == "ratio 1000"
    recovered = experiment.recovered(cells, problems["1-D"], fast["1-D"])
    assert f"{recovered} seeds recover the target, and none at one rate" in front
    assert experiment.recovered(cells, problems["1-D"], ONE_RATE).startswith("0 of")
    assert {name for name, value in p.items() if value <= 0.05} == {"1-D", "2-D", "ReLU"}
    assert "The gain survives equal steps and a tuned rate on three of four problems" in results
    seeds = len(experiment.seeds_of(problems["10-D"]))
    assert seeds == 8
    assert (
        f"In 10-D the median is {gain['10-D']:.1f} times lower too, but eight seeds do not "
        f"tell it from chance (p {p['10-D']:.2g}" in results
    )
    curve = experiment.result(cells, problems["10-D"], ONE_RATE)["losses"]
    early = quartiles(curve[MOMENTS.index(0.1)])[1]
    assert f"median of {early:.4f} after 300 steps and of" in results
    alone = p["10-D"] / (len(tuned_arms(problems["10-D"])) - 1)
    assert f"which is p {alone:.2g} alone, and {p['10-D']:.2g} times the eight arms" in results
