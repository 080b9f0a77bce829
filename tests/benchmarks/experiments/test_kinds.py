"""Rates by kind: which parameter is of which kind, what moves at which rate, and searches that can be compared."""

from __future__ import annotations

import copy
import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import EXPERIMENT_RESULTS, ROOT
from torch import Tensor, nn

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("optuna")

from stackelberg_fused.benchmarks.experiments import runner
from stackelberg_fused.benchmarks.experiments.kind_arms import (
    ARMS,
    BY_KIND,
    FAST_HEAD,
    IN_RATIOS,
    KINDS,
    ONE_RATE,
    PUBLISHED,
    by_kind,
    in_ratios,
    together,
)
from stackelberg_fused.benchmarks.experiments.kind_search import QUICK, Searches, next_byte_loss
from stackelberg_fused.benchmarks.experiments.kinds import NEIGHBOURS, OF_BOTH, Kinds

from stackelberg_fused.demo.gpt import GPT, GPTConfig
from stackelberg_fused.optimizers.adam import StackelbergAdam

pytestmark = pytest.mark.slow  # each part of it is a run


def _gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(context=8, layers=2, heads=2, width=16))


def test_every_parameter_has_one_kind() -> None:
    model = _gpt()
    found = {group["name"]: [name for name, _ in group["params"]] for group in by_kind(model)}
    assert tuple(found) == KINDS
    every = [name for names in found.values() for name in names]
    assert sorted(every) == sorted(name for name, _ in model.named_parameters())
    assert found["embeddings"] == ["token_embedding.weight", "position_embedding.weight"]
    assert found["head"] == ["lm_head.weight"]
    layers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(found["matrices"]) == {f"{name}.weight" for name in layers - {"lm_head"}}


@pytest.mark.parametrize("arm", [PUBLISHED, FAST_HEAD])
def test_kinds_move_in_the_ratios_of_their_rates(arm: Any) -> None:
    """The first step of Adam moves every coordinate that has a gradient by the rate."""
    model = _gpt()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    groups = [{**group, "lr": 1e-3} for group in together(model)]
    optimizer = in_ratios(groups, arm.ratios)
    tokens = torch.randint(256, (4, 8))
    next_byte_loss(model, (tokens, tokens.flip(0))).backward()
    optimizer.step()
    for group, ratio in zip(by_kind(model), arm.ratios, strict=True):
        for name, param in group["params"]:
            moved = (param.detach() - before[name]).abs()
            assert float(moved.max()) == pytest.approx(1e-3 * ratio, rel=1e-3), name


def test_ratios_of_one_are_one_rate_to_the_bit() -> None:
    """So what the two kinds of search find can be compared: the same starts, batches and seeds."""
    ends: list[list[float]] = []
    for groups, optimizer in (
        (by_kind, StackelbergAdam),
        (together, partial(in_ratios, ratios=ONE_RATE.ratios)),
    ):
        searches = Searches(QUICK)
        found = searches._found(groups, optimizer, None)
        ends.append([found["one_rate"], *found["losses"]["one rate"]])
    assert ends[0] == ends[1]


def test_the_published_head_is_the_slowest_and_its_embeddings_the_fastest() -> None:
    embeddings, matrices, norms, head = PUBLISHED.ratios or ()
    assert embeddings > matrices >= norms > head
    assert 50 <= embeddings / head <= 175
    assert all(arm.ratios is not None and arm.ratios[1] == 1.0 for arm in IN_RATIOS)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from rich.console import Console

    folder = tmp_path_factory.mktemp("kinds")
    assert runner.run(Kinds(quick=True), folder, Console(quiet=True)) == 0
    assert not list(folder.glob("*.search")), "the file of a finished search was left"
    cells: dict[str, Any] = json.loads((folder / "kinds.json").read_text())["cells"]
    return cells


def test_one_rate_is_repeated_at_its_neighbours_with_the_same_seeds(quick: dict[str, Any]) -> None:
    experiment = Kinds(quick=True)
    rate = quick[OF_BOTH]["one_rate"]
    again, other = (
        experiment.searches.judged([times * rate] * 4, QUICK.seeds, QUICK.steps)
        for times in (1, 0.7)
    )
    assert again == pytest.approx(experiment.losses(quick, ONE_RATE), rel=1e-4)  # it was rounded
    assert other == pytest.approx(quick["one rate x 0.7"])
    assert all(len(quick[f"one rate x {times:g}"]) == QUICK.seeds for times in NEIGHBOURS)


def test_every_arm_had_the_same_budget_and_learned(quick: dict[str, Any]) -> None:
    experiment = Kinds(quick=True)
    for arm in ARMS:
        assert len(experiment.tried(quick, arm)) == QUICK.budget
        assert len(experiment.losses(quick, arm)) == QUICK.seeds
        # far below a guess without any knowledge of the text
        assert max(experiment.losses(quick, arm)) < math.log(256) - 0.5
    tuned = [min(experiment.tried(quick, arm)) for arm in (BY_KIND, ONE_RATE)]
    assert tuned[0] <= tuned[1]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda cells: cells[OF_BOTH]["trials"]["rates by group"].pop(), "3 points instead of 4"),
        (lambda cells: cells["head x 10"]["losses"]["one rate"].pop(), "5 seeds instead of 6"),
        (
            lambda cells: cells["head x 10"]["losses"].update({"one rate": [6.0] * 6}),
            "head x 10: has learned nothing",
        ),
        (
            lambda cells: [
                point.update({"loss": 9.0})
                for point in cells[OF_BOTH]["trials"]["rates by group"]
            ],
            "did not begin at the best one rate",
        ),
    ],
)  # fmt: skip
def test_checks_can_fail(quick: dict[str, Any], change: Any, said: str) -> None:
    experiment, cells = Kinds(quick=True), copy.deepcopy(quick)
    assert experiment.check(cells) == []
    change(cells)
    assert any(said in line for line in experiment.check(cells))


def test_a_search_that_was_interrupted_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [0]

    def counted(model: nn.Module, batch: Any) -> Tensor:
        runs[0] += 1
        if runs[0] == stop:
            raise KeyboardInterrupt
        return next_byte_loss(model, batch)

    monkeypatch.setattr(
        "stackelberg_fused.benchmarks.experiments.kind_search.next_byte_loss", counted
    )
    stop = -1
    whole = Kinds(quick=True)
    cell = next(iter(next(whole.stages({}))))
    expected, taken = cell.work(), runs[0]
    runs[0], stop = 0, taken // 2
    experiment = Kinds(quick=True)
    experiment.folder = tmp_path
    cell = next(iter(next(experiment.stages({}))))
    with pytest.raises(KeyboardInterrupt):
        cell.work()
    assert list(tmp_path.glob("kinds-*.search"))
    stop = -1
    assert cell.work() == expected
    assert runs[0] < taken + 3 * QUICK.steps
    assert not list(tmp_path.iterdir())
    assert cell.key == OF_BOTH


def test_documented_figures_are_those_of_the_committed_run() -> None:
    result = json.loads((EXPERIMENT_RESULTS / "kinds.json").read_text())
    experiment, cells = Kinds(quick=False), result["cells"]
    assert experiment.check(cells) == []
    text = (ROOT / "docs" / "results.md").read_text()
    section = text[text.index("## Rates by kind") :]
    rows = {row.split("|")[1].strip(" *"): row for row in section.splitlines() if "|" in row}
    rates, losses = experiment.tables(cells)
    for i, arm in enumerate(ARMS):
        columns = (*rates.columns[1:], *losses.columns[1:])
        said = [str([*column.cells][i]) for column in columns]
        for figure in filter(None, said):
            assert figure in rows[arm.label].replace("*", ""), (arm.label, figure)
    printed = " ".join([*experiment.verdict(cells), *rows.values()])
    for figure in re.findall(r"\d\.\d{4}", section):
        assert figure in printed, figure
    (first,) = re.findall(r"point (\d+) of \d+ by kind", experiment.verdict(cells)[3])
    assert f"the {first}th point" in " ".join(section.lower().split())
