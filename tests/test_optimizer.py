"""Drop-in behaviour: whatever a script does with torch.optim, it can do here, with the same result."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import OURS, TORCHS, Options, both, kernel_options, normal, set_gradients, step
from checks import all_params, assert_agree, assert_same_bits, assert_same_optimizers
from tolerances import SEVERAL_STEPS
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import stackelberg_fused as sf

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
MOMENTUM = Options("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3})


@BACKENDS
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_same_as_torch(options: Options, backend: str) -> None:
    ours, torchs = both(options, backend)
    for seed in range(10):
        step(ours, torchs, seed=seed)
    assert_agree(ours, torchs)


@pytest.mark.parametrize("rule", OURS)
def test_positional_arguments(rule: str) -> None:
    arguments = {
        "adam": (0.1, (0.5, 0.9), 1e-3, 0.2, True),
        "adamw": (0.1, (0.5, 0.9), 1e-3, 0.2, True),
    }
    values = arguments.get(rule, (0.1, 0.9, 0.0, 0.2, True))
    p, q = (nn.Parameter(normal(9, 1)) for _ in range(2))
    ours, torchs = OURS[rule]([p], *values, backend="reference"), TORCHS[rule]([q], *values)
    for seed in range(3):
        step(ours, torchs, seed=seed)
    assert_same_bits(p, q)


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


@BACKENDS
def test_closure(backend: str) -> None:
    ours, torchs = both(ADAM, backend)
    losses = []
    for optimizer in (ours, torchs):

        def closure(optimizer: Any = optimizer) -> torch.Tensor:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sum((p**2).sum() for p in all_params(optimizer))
            loss.backward()
            return loss

        with torch.no_grad():
            losses.append(torch.stack([optimizer.step(closure) for _ in range(5)]).detach())
    torch.testing.assert_close(*losses, **SEVERAL_STEPS)
    assert losses[0][-1] < losses[0][0]
    assert_agree(ours, torchs)


def test_a_closure_that_raises_changes_nothing() -> None:
    ours, _ = both(ADAM, "cpu")
    step(ours)
    before = [p.detach().clone() for p in all_params(ours)]

    def closure() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ours.step(closure)
    for p, b in zip(all_params(ours), before, strict=True):
        assert_same_bits(p, b)


@BACKENDS
def test_roles(backend: str) -> None:
    """Stepping one player leaves the other as it is, to the bit, and counts its own steps."""
    sides = [[nn.Parameter(normal(n, n)) for n in (5, 4097)] for _ in range(2)]
    groups = [
        {"params": [sides[0][0]], "lr": 0.1},
        {"params": [sides[0][1]], "lr": 0.2, "role": "head"},
    ]
    optimizer = sf.StackelbergAdamW(groups, backend=backend)
    alone = [torch.optim.AdamW([p], lr) for p, lr in zip(sides[1], (0.1, 0.2), strict=True)]
    for seed, role in enumerate(["head", "head", "body", None, "head", "body", None]):
        set_gradients(optimizer.param_groups, seed)
        for number, (p, q) in enumerate(zip(*sides, strict=True)):
            q.grad = p.grad.clone()
            if role in (None, ("body", "head")[number]):
                alone[number].step()
        optimizer.step(role=role)
        for p, q in zip(*sides, strict=True):
            torch.testing.assert_close(p, q, **SEVERAL_STEPS)
    assert [float(optimizer.state[p]["step"]) for p in sides[0]] == [4, 5]
    assert optimizer.launches == (7 if backend == "cpu" else 0)


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(to_none: bool) -> None:
    ours, torchs = both(ADAM)
    step(ours, torchs)
    for optimizer in (ours, torchs):
        optimizer.zero_grad(set_to_none=to_none)
        optimizer.step()
    assert all((p.grad is None) == to_none for p in all_params(ours))
    assert_agree(ours, torchs)


def test_hooks() -> None:
    ours, _ = both(ADAM, "cpu")
    seen: list[str] = []
    ours.register_step_pre_hook(lambda o, args, kwargs: seen.append(f"pre {kwargs}"))
    ours.register_step_post_hook(lambda o, args, kwargs: seen.append("post"))
    ours.register_state_dict_pre_hook(lambda o: seen.append("state_dict"))
    ours.register_state_dict_post_hook(lambda o, d: {**d, "mine": 1})
    ours.register_load_state_dict_pre_hook(lambda o, d: seen.append(f"load {d['mine']}"))
    ours.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    step(ours, role="body")
    ours.load_state_dict(ours.state_dict())
    assert seen == ["pre {'role': 'body'}", "post", "state_dict", "load 1", "loaded"]


@pytest.mark.parametrize("cls", [sf.StackelbergAdamW, torch.optim.AdamW])
def test_step_hooks_see_what_the_caller_gave(cls: type) -> None:
    param = nn.Parameter(normal(3, 1))
    optimizer = cls([param])
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append((args[1:], kwargs)))
    handle = register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append(o))
    closure = (param**2).sum
    try:
        optimizer.step()
        optimizer.step(closure)
        optimizer.step(closure=closure)
    finally:
        handle.remove()
    # ours passes a closure on by position, whichever way it came
    assert seen[:4] == [((), {}), optimizer, ((closure,), {}), optimizer]
    assert len(seen) == 6


def test_a_global_hook_before_the_step_is_enough_to_be_called() -> None:
    optimizer = sf.StackelbergAdamW([nn.Parameter(normal(3, 1))])
    seen: list[Any] = []
    handle = register_optimizer_step_pre_hook(lambda o, args, kwargs: seen.append(o))
    try:
        optimizer.step()
    finally:
        handle.remove()
    assert seen == [optimizer]


def test_hooks_run_once_where_a_subclass_has_a_step_of_its_own() -> None:
    class Mine(sf.StackelbergAdamW):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    optimizer = Mine([nn.Parameter(normal(3, 1))])
    seen: list[int] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append(1))
    optimizer.step()
    assert seen == [1]


def test_hooks_run_where_a_subclass_wraps_the_step() -> None:
    class Mine(sf.StackelbergAdamW):
        @functools.wraps(sf.StackelbergAdamW.step)
        def step(self, *args: Any, **kwargs: Any) -> Any:
            return super().step(*args, **kwargs)

    optimizer = Mine([nn.Parameter(normal(3, 1))])
    seen: list[int] = []
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(1))
    optimizer.step()
    assert seen == [1]


def test_hooks_run_where_the_class_is_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = sf.StackelbergAdamW([nn.Parameter(normal(3, 1))])
    original = sf.StackelbergAdamW.step
    monkeypatch.setattr(sf.StackelbergAdamW, "step", lambda o, *a, **k: original(o, *a, **k))
    seen: list[int] = []
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(1))
    optimizer.step()
    assert seen == [1]


def test_a_profiler_sees_the_step_under_torchs_name() -> None:
    ours, torchs = both(ADAM, "cpu")
    for optimizer in (ours, torchs):
        step(optimizer)
        with torch.profiler.profile() as profiled:
            step(optimizer)
        name = type(optimizer).__name__
        assert f"Optimizer.step#{name}.step" in {event.key for event in profiled.key_averages()}


@pytest.mark.parametrize("overflow", [False, True])
@BACKENDS
def test_grad_scaler(overflow: bool, backend: str) -> None:
    ours, torchs = both(ADAM, backend)
    for optimizer in (ours, torchs):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for number in range(3):
            optimizer.zero_grad()
            scaler.scale(sum((p**2).sum() for p in all_params(optimizer))).backward()
            if overflow and number == 1:
                all_params(optimizer)[0].grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == (512.0 if overflow else 1024.0)
    assert ours.state[all_params(ours)[0]]["step"] == (2 if overflow else 3)
    assert_agree(ours, torchs)


def test_compiled_training_step() -> None:
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [ADAM.ours(m.parameters(), backend="cpu") for m in models]

    def train(model: nn.Module, optimizer: Any, x: torch.Tensor) -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    compiled = torch.compile(train, backend="eager")
    for seed in range(4):
        compiled(models[0], optimizers[0], normal((4, 3), seed))
        train(models[1], optimizers[1], normal((4, 3), seed))
    assert_same_optimizers(*optimizers)
    assert optimizers[0].launches == 4


def test_repr_shows_groups() -> None:
    ours, _ = both(ADAM)
    assert "StackelbergAdamW" in repr(ours)
    assert "role: body" in repr(ours)
