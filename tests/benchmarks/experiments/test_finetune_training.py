"""Fine-tuning of a new head and a trained body: who moves when, and against torch's optimizers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn

pytest.importorskip("sklearn")

from stackelberg_fused.benchmarks.experiments import finetune_training
from stackelberg_fused.benchmarks.experiments.finetune_arms import (
    ARMS,
    HEAD_ONLY,
    ONE_RATE,
    PROBES_FIRST,
    Arm,
)
from stackelberg_fused.benchmarks.experiments.finetune_data import (
    DIGITS,
    FEATURES,
    NEW_CLASSES,
    TEXT,
    split,
)
from stackelberg_fused.benchmarks.experiments.finetune_training import (
    draw,
    falling,
    fine_tune,
    loss_and_accuracy,
    make_optimizer,
    pretrained,
    respond,
)

pytestmark = pytest.mark.slow  # each part of it is a run

TASK = replace(DIGITS, pretraining=150, steps=20)
EXACT_FIRST = Arm("exact first", share=0.25)


def values(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.label)
def test_steps_of_every_arm(arm: Arm, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have the same batches; a head that begins alone, or is charged, takes them from those of everything."""
    made: list[Any] = []
    drawn: list[Any] = []

    def remembered(*arguments: Any) -> Any:
        made.append(make_optimizer(*arguments))
        return made[-1]

    def counted(*arguments: Any) -> Any:
        drawn.append(draw(*arguments))
        return drawn[-1]

    trained, _ = pretrained(TASK, 0)
    monkeypatch.setattr(finetune_training, "make_optimizer", remembered)
    monkeypatch.setattr(finetune_training, "draw", counted)
    body, head = fine_tune(TASK, "AdamW", arm, -5, 0, -3 if arm in PROBES_FIRST else None)
    (optimizer,) = made
    assert len(drawn) == TASK.steps

    def steps(part: nn.Module) -> set[float]:
        return {float(optimizer.state[p].get("step", 0)) for p in part.parameters()}

    expected = {"together": (20, 20), "head only": (0, 20), "exact first": (15, 15)}
    of_body, of_head = expected.get(arm.mode, (20, 20 * arm.head_steps))
    if arm in PROBES_FIRST:
        of_body = 20 - round(arm.share * 20)
    assert steps(head) == {of_head}
    assert steps(body) == {of_body}
    moved = any(not torch.equal(a, b) for a, b in zip(values(body), values(trained), strict=True))
    assert moved == (arm != HEAD_ONLY)


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
@pytest.mark.parametrize("arm", [ONE_RATE, Arm("together", 10)], ids=lambda arm: arm.label)
def test_together_is_what_torchs_optimizers_do(name: str, arm: Arm) -> None:
    body, head = fine_tune(TASK, name, arm, -4, 3, None)
    trained, data = pretrained(TASK, 3)
    other = copy.deepcopy(trained)
    torch.manual_seed(3)
    fresh = nn.Linear(FEATURES, NEW_CLASSES)
    rates = arm.rates(-4)
    assert rates[1] / rates[0] == pytest.approx(arm.ratio)
    assert rates[0] * rates[1] == pytest.approx(1e-4)
    groups = [
        {"params": list(part.parameters()), "lr": lr}
        for part, lr in zip((other, fresh), rates, strict=True)
    ]
    optimizer: Any = (
        torch.optim.SGD(groups, momentum=0.9)
        if name == "SGD"
        else torch.optim.AdamW(groups, weight_decay=0.0)
    )
    generator = Generator().manual_seed(3)
    for step in range(TASK.steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * falling(step, TASK.steps)
        inputs, labels = draw(data, generator)
        optimizer.zero_grad()
        F.cross_entropy(fresh(other(inputs)), labels).backward()
        optimizer.step()
    for ours, theirs in zip(
        values(body) + values(head), values(other) + values(fresh), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def test_a_head_that_begins_alone_is_the_head_only_arms() -> None:
    """At no rate for everything, what is left is a probe of half the steps."""
    _, head = fine_tune(TASK, "SGD", PROBES_FIRST[1], -60, 1, -3)
    alone = replace(TASK, steps=10)
    _, expected = fine_tune_of(alone, pretrained(TASK, 1)[0])
    for ours, theirs in zip(values(head), values(expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def fine_tune_of(task: Any, trained: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Train a head alone, by torch's SGD."""
    torch.manual_seed(1)
    head = nn.Linear(FEATURES, NEW_CLASSES)
    optimizer = torch.optim.SGD(head.parameters(), lr=10**-1.5, momentum=0.9)
    generator, data = Generator().manual_seed(1), split(task, 1)
    for step in range(task.steps):
        optimizer.param_groups[0]["lr"] = 10**-1.5 * falling(step, task.steps)
        inputs, labels = draw(data, generator)
        optimizer.zero_grad()
        F.cross_entropy(head(trained(inputs).detach()), labels).backward()
        optimizer.step()
    return trained, head


def test_the_best_response_is_better_than_a_trained_head() -> None:
    trained, data = pretrained(TASK, 2)
    _, probe = fine_tune(TASK, "AdamW", HEAD_ONLY, -3, 2, None)
    response = nn.Linear(FEATURES, NEW_CLASSES)
    respond(trained, response, data)

    def objective(head: nn.Linear) -> float:
        square = sum(float(p.detach().square().sum()) for p in head.parameters())
        return loss_and_accuracy(trained, head, data.train)[0] + 0.5e-3 * square

    assert isinstance(probe, nn.Linear)
    assert objective(response) < objective(probe)


@pytest.mark.parametrize(
    "task, chance",
    [(TASK, 0.2), (replace(TEXT, pretraining=400), 1 / 15)],
    ids=["digits", "text"],
)
def test_a_pretrained_body_knows_its_classes_under_each_shift(task: Any, chance: float) -> None:
    """A least-squares head on its features does better than chance, and better than on those of a new body."""
    trained, data = pretrained(task, 5)
    torch.manual_seed(77)
    scores = {}
    inputs, labels = (part[:: max(1, len(part) // 800)] for part in data.old)
    for name, body in (("trained", trained), ("new", task.body())):
        for shift, change in task.shifts.items():
            with torch.no_grad():
                features = body(change(inputs, Generator().manual_seed(0)))
            features = torch.cat([features, torch.ones(len(features), 1)], 1)
            half = torch.arange(len(labels)) % 2 == 0
            hot = F.one_hot(labels, task.classes - NEW_CLASSES).float()
            normal = features[half].T @ features[half] + 0.1 * torch.eye(FEATURES + 1)
            weights = torch.linalg.solve(normal, features[half].T @ hot[half])
            right = (features[~half] @ weights).argmax(1) == labels[~half]
            scores[name, shift] = float(right.float().mean())
    for shift in task.shifts:
        assert scores["trained", shift] > max(1.5 * chance, scores["new", shift])


def test_losses_that_are_not_finite_are_infinite() -> None:
    _, data = pretrained(TASK, 0)
    head = nn.Linear(64, NEW_CLASSES)
    nn.init.constant_(head.weight, float("nan"))
    assert loss_and_accuracy(nn.Identity(), head, data.test)[0] == float("inf")
