"""Settings edited by hand: followed by the next step exactly as torch follows them, wherever they are edited."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    Options,
    both,
    normal,
    set_gradients,
    step,
)
from checks import (
    Snapshot,
    all_params,
    assert_agree,
    assert_same_bits,
    assert_same_optimizers,
)
from torch import nn

import stackelberg_fused as sf

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
MOMENTUM = Options("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3})


Edit = Callable[[dict[str, Any]], None]
EDITS: dict[str, tuple[Options, Edit]] = {
    "lr": (ADAM, lambda g: g.update(lr=0.01)),
    "lr to a tensor": (ADAM, lambda g: g.update(lr=torch.tensor(0.01))),
    "lr to zero": (ADAM, lambda g: g.update(lr=0.0)),
    "betas": (ADAM, lambda g: g.update(betas=(0.5, 0.7))),
    "eps": (ADAM, lambda g: g.update(eps=1e-2)),
    "weight_decay": (ADAM, lambda g: g.update(weight_decay=0.5)),
    "weight_decay to zero": (
        Options("adam", {"weight_decay": 0.1}),
        lambda g: g.update(weight_decay=0),
    ),
    "weight_decay from zero": (Options("adam"), lambda g: g.update(weight_decay=0.1)),
    "amsgrad off": (Options("adam", {"amsgrad": True}), lambda g: g.update(amsgrad=False)),
    "maximize": (ADAM, lambda g: g.update(maximize=True)),
    "momentum": (MOMENTUM, lambda g: g.update(momentum=0.5)),
    "momentum to zero": (MOMENTUM, lambda g: g.update(momentum=0)),
    "momentum from zero": (Options("sgd"), lambda g: g.update(momentum=0.9, dampening=0.3)),
    "nesterov": (MOMENTUM, lambda g: g.update(nesterov=True, dampening=0)),
    "dampening": (MOMENTUM, lambda g: g.update(dampening=0.9)),
    # what torch refuses at construction alone
    "lr below zero": (ADAM, lambda g: g.update(lr=-0.01)),
    "lr a tensor below zero": (ADAM, lambda g: g.update(lr=torch.tensor(-0.01))),
    "lr of sgd below zero": (MOMENTUM, lambda g: g.update(lr=-1e-20)),
    "eps below zero": (ADAM, lambda g: g.update(eps=-1e-9)),
    "weight_decay below zero": (ADAM, lambda g: g.update(weight_decay=-0.5)),
    "weight_decay of sgd below zero": (MOMENTUM, lambda g: g.update(weight_decay=-0.5)),
    "momentum below zero": (MOMENTUM, lambda g: g.update(momentum=-0.5)),
    "nesterov, dampened": (MOMENTUM, lambda g: g.update(nesterov=True)),
    "nesterov without momentum": (MOMENTUM, lambda g: g.update(nesterov=True, momentum=0.0)),
}


@BACKENDS
@pytest.mark.parametrize("name", EDITS)
def test_settings_edited_between_steps(name: str, backend: str) -> None:
    options, edit = EDITS[name]
    ours, torchs = both(options, backend, num_groups=2)
    undo = {k: v for k, v in torchs.param_groups[1].items() if k != "params"}
    for seed in range(6):
        if seed == 2:
            edit(ours.param_groups[1])
            edit(torchs.param_groups[1])
        if seed == 4 and name != "amsgrad off":
            ours.param_groups[1].update(undo)
            torchs.param_groups[1].update(undo)
        step(ours, torchs, seed=seed)
    assert_agree(ours, torchs)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("setting", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("rule", ["adam", "adamw", "sgd"])
@BACKENDS
def test_infinite_settings(
    backend: str, rule: str, setting: str, weight_decay: float, value: float
) -> None:
    """They leave NaN and infinities where torch does, and nowhere else."""
    if setting == "eps" and rule == "sgd":
        pytest.skip("SGD has none")
    ours, torchs = both(Options(rule, {"lr": 0.1, "weight_decay": weight_decay}), backend)
    step(ours, torchs)
    for optimizer in (ours, torchs):
        optimizer.param_groups[0][setting] = value
    step(ours, torchs, seed=1)
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        torch.testing.assert_close(p, q, equal_nan=True)


@BACKENDS
@pytest.mark.parametrize("setting", ["lr", "weight_decay"])
def test_a_setting_that_becomes_a_tensor_and_is_filled_in_place(setting: str, backend: str) -> None:
    ours, torchs = both(Options("sgd", {"lr": 0.1, "weight_decay": 0.1}), backend, num_groups=2)
    for seed in range(6):
        for optimizer in (ours, torchs):
            group = optimizer.param_groups[1]
            if seed == 2:
                group[setting] = torch.tensor(0.2)
            elif seed == 4:
                group[setting].fill_(0.4)
            elif seed == 5:
                group[setting] = 0.05
        step(ours, torchs, seed=seed)
    assert_agree(ours, torchs)


@BACKENDS
@pytest.mark.parametrize("setting", ["lr", "weight_decay", "betas"])
def test_a_tensor_of_the_same_value_may_be_filled_later(setting: str, backend: str) -> None:
    values = {"lr": 0.5, "weight_decay": 0.25, "betas": (0.5, 0.75)}
    ours, torchs = both(Options("adamw", values), backend, num_groups=2)
    for seed in range(6):
        for optimizer in (ours, torchs):
            group = optimizer.param_groups[1]
            if seed == 2 and setting == "betas":
                group["betas"] = (torch.tensor(0.5), torch.tensor(0.75))
            elif seed == 2:
                group[setting] = torch.tensor(values[setting])
            elif seed == 4:
                (group["betas"][0] if setting == "betas" else group[setting]).fill_(0.125)
        step(ours, torchs, seed=seed)
    assert_agree(ours, torchs)


@pytest.mark.parametrize("count", [float("nan"), float("inf"), -1.0, 1e30])
def test_a_step_count_that_is_none_is_refused(count: float) -> None:
    ours, twin = (both(ADAM, "cpu")[0] for _ in range(2))
    step(ours, twin)
    state = ours.state[all_params(ours)[0]]
    state["step"].fill_(count)
    set_gradients(ours.param_groups, 1)
    before = [p.detach().clone() for p in all_params(ours)]
    with pytest.raises(ValueError, match=r"parameter 0 of param group 0 .*step is"):
        ours.step()
    assert all(torch.equal(p, q) for p, q in zip(all_params(ours), before, strict=True))
    state["step"].fill_(1)
    step(ours, twin, seed=2)
    assert_same_optimizers(ours, twin)


def test_an_edit_made_during_a_step_is_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, torchs = both(ADAM, "cpu")
    for optimizer in (ours, torchs):
        optimizer.param_groups[0]["lr"] = 0.05
    unit = ours._engine.units[0]
    launch = unit.launch

    def launch_and_edit(pending: Any) -> int:
        launches = launch(pending)
        ours.param_groups[0]["lr"] = 0.0
        return launches

    monkeypatch.setattr(unit, "launch", launch_and_edit)
    step(ours, torchs)
    monkeypatch.undo()
    torchs.param_groups[0]["lr"] = 0.0
    step(ours, torchs, seed=1)
    assert_agree(ours, torchs)


def test_a_fractional_step_count_from_a_state_dict_steps_as_its_whole_part() -> None:
    ours, whole = both(ADAM, "cpu")[0], both(ADAM, "cpu")[0]
    step(ours, whole)
    saved = copy.deepcopy(ours.state_dict())
    saved["state"][1]["step"] = torch.tensor(1.5)
    ours.load_state_dict(saved)
    step(ours, whole, seed=1)
    for p, q in zip(all_params(ours), all_params(whole), strict=True):
        assert_same_bits(p, q)


@BACKENDS
def test_a_numpy_rate_may_be_filled_in_place(backend: str) -> None:
    ours, torchs = both(Options("sgd", {"lr": 0.5}), backend)
    rates = [np.array(0.5), np.array(0.5)]
    for seed in range(4):
        for optimizer, rate in zip((ours, torchs), rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate
            if seed == 2:
                rate.fill(0.125)
        step(ours, torchs, seed=seed)
    assert_agree(ours, torchs)


@BACKENDS
def test_parameters_of_a_group_may_be_in_a_tuple(backend: str) -> None:
    ours, torchs = both(ADAM, backend)
    for optimizer in (ours, torchs):
        optimizer.param_groups[0]["params"] = tuple(optimizer.param_groups[0]["params"])
    for seed in range(2):
        step(ours, torchs, seed=seed)
    assert_agree(ours, torchs)


def test_a_warning_that_is_an_error_leaves_everything_as_it_was() -> None:
    body, head = (nn.Parameter(normal(3, i)) for i in range(2))
    ours = sf.StackelbergAdamW([{"params": [body]}, {"params": [head], "role": "head"}], lr=0.1)
    step(ours)
    ours.param_groups[0]["lr"] = 100.0
    set_gradients(ours.param_groups, 1)
    before = body.detach().clone(), head.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="body's learning rate"):
            ours.step()
    assert torch.equal(body, before[0])
    assert torch.equal(head, before[1])
    assert ours.state[head]["step"] == 1
    ours.step()
    assert ours.state[head]["step"] == 2


def test_a_warning_that_is_an_error_comes_before_any_edit_is_accepted() -> None:
    body, head = (nn.Parameter(normal(3, i)) for i in range(2))
    ours = sf.StackelbergAdamW([{"params": [body]}, {"params": [head], "role": "head"}], lr=0.1)
    step(ours)
    ours.param_groups[0].update(lr=100.0, amsgrad=True)
    set_gradients(ours.param_groups, 1)
    before = Snapshot(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="body's learning rate"):
            ours.step()
    before.assert_unchanged()
    ours.step()
    assert "max_exp_avg_sq" in ours.state[body]


def test_a_new_rate_is_still_news_after_a_look_at_the_backend() -> None:
    body, head = (nn.Parameter(normal(3, i)) for i in range(2))
    ours = sf.StackelbergAdamW([{"params": [body]}, {"params": [head], "role": "head"}], lr=0.1)
    step(ours)
    ours.param_groups[0]["lr"] = 100.0
    assert ours.backend == "cpu"
    with pytest.warns(UserWarning, match="body's learning rate"):
        step(ours)


def test_amsgrad_switched_on_starts_from_zero() -> None:
    """torch raises a KeyError; a maximum that starts here is what it means."""
    (ours, _), (fresh, _) = (
        both(Options("adam"), "cpu"),
        both(Options("adam", {"amsgrad": True}), "cpu"),
    )
    step(ours)
    ours.param_groups[0]["amsgrad"] = True
    step(ours, seed=1)
    state = ours.state[all_params(ours)[0]]
    assert_same_bits(state["max_exp_avg_sq"], state["exp_avg_sq"])
    assert "max_exp_avg_sq" not in fresh.state[all_params(fresh)[0]]
