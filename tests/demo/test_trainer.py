"""Runs of the demo differ in nothing but the optimizer."""

from __future__ import annotations

import math

import pytest

from stackelberg_fused.demo.settings import DEFAULTS, Settings
from stackelberg_fused.demo.tasks import TASKS
from stackelberg_fused.demo.trainer import Trainer

pytest.importorskip("sklearn")


def _trainer(task: str, index: int, **changes) -> Trainer:
    values = {"seed": 0, "backend": "auto", "device": "cpu", "threads": 1, "quick": True}
    settings = Settings(**{"task": task, **DEFAULTS[task], **values, "steps": 20, **changes})
    return Trainer(TASKS[task](quick=True), settings, index)


def test_a_head_of_zeros_starts_at_the_loss_of_a_guess():
    for task, classes in (("language", 256), ("digits", 10)):
        trainer = _trainer(task, 1, head_scale=0.0)
        trainer.evaluate()
        assert trainer.record["validation"][0][1] == pytest.approx(math.log(classes))


@pytest.mark.parametrize("task", TASKS)
def test_groups_keep_their_ratio_through_the_schedule(task):
    control = _trainer(task, 0, lr=0.01, body_lr=0.002, ratios=(5.0,))
    trainer = _trainer(task, 1, lr=0.01, body_lr=0.002, ratios=(5.0,))
    peak = 0.0
    for _ in range(20):
        rates = {group["role"]: group["lr"] for group in trainer.optimizer.param_groups}
        (one,) = {group["lr"] for group in control.optimizer.param_groups}
        assert rates["head"] == pytest.approx(5 * rates["body"])
        assert one == pytest.approx(5 * rates["body"])
        peak = max(peak, rates["body"])
        control.advance()
        trainer.advance()
    assert peak == pytest.approx(0.002)
    assert rates["body"] < 0.2 * peak


@pytest.mark.parametrize("task", TASKS)
def test_only_matrices_decay_in_every_run(task):
    for index in (0, 1):
        for group in _trainer(task, index).optimizer.param_groups:
            assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize("task", TASKS)
def test_runs_differ_in_nothing_but_the_optimizer(task):
    same_rates = {"lr": 0.003, "body_lr": 0.003, "ratios": (1.0, 10.0)}
    trainers = [_trainer(task, index, **same_rates) for index in range(3)]
    for trainer in trainers:
        for _ in range(20):
            trainer.advance()
    control, again, faster = (trainer.record["train_loss"] for trainer in trainers)
    assert control[0] == again[0] == faster[0]
    assert again == pytest.approx(control, rel=1e-4)
    assert faster != pytest.approx(control, rel=1e-4)
