"""Schedulers: they see torch's optimizer, and its results."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from cases import Options, both, step
from checks import assert_agree
from torch.optim import lr_scheduler

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
MOMENTUM = Options("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3})
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, [lambda e: 0.9**e, lambda e: 1 / (1 + e)]),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=[0.1, 0.5], total_steps=12),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=8),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "to zero": lambda o: lr_scheduler.LinearLR(o, 1 / 3, 0.0, 7),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.ExponentialLR(o, 0.8)], [4]
    ),
}


@BACKENDS
@pytest.mark.parametrize("options", [ADAM, MOMENTUM], ids=str)
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedulers(name: str, options: Options, backend: str) -> None:
    ours, torchs = both(options, backend, num_groups=2)
    schedules = [SCHEDULES[name](o) for o in (ours, torchs)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The epoch parameter")  # torch's own SequentialLR
        for seed in range(10):
            step(ours, torchs, seed=seed)
            for schedule in schedules:
                schedule.step()
    assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in torchs.param_groups]
    assert_agree(ours, torchs)


def test_reduce_on_plateau() -> None:
    ours, _ = both(ADAM, "cpu")
    schedule = lr_scheduler.ReduceLROnPlateau(ours, patience=0)
    for _ in range(4):
        step(ours)
        schedule.step(1.0)
    assert ours.param_groups[0]["lr"] < 0.1
