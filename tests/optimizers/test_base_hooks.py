"""Hooks and the profiler: whoever looks at a step sees what torch would show, however step is wrapped."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from cases import (
    Options,
    both,
    normal,
    step,
)
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import stackelberg_fused as sf

ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})


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


def test_a_hook_may_make_anything_of_a_state_dict() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    ours = sf.StackelbergSGD([p], lr=1.0, momentum=0.9, backend="cpu")
    ours.register_state_dict_post_hook(lambda optimizer, found: {"wrapped": found})
    ours.found_inf = torch.zeros(())
    p.grad = torch.ones(3)
    ours.step()
    assert list(ours.state_dict()) == ["wrapped"]


def test_a_hook_that_raises_leaves_nothing_of_a_scaler() -> None:
    p = torch.nn.Parameter(torch.zeros(3))
    ours = sf.StackelbergSGD([p], lr=1.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def hook(*_: object) -> None:
        raise KeyboardInterrupt

    handle = ours.register_step_pre_hook(hook)
    scaler.scale(p.sum()).backward()
    with pytest.raises(KeyboardInterrupt):
        scaler.step(ours)
    handle.remove()
    ours.step()
    assert p.tolist() == [-8.0] * 3
