"""Wrappers that imitate the optimizer's class: what is set on one, or done through one, counts for the other."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import normal
from checks import assert_same_bits
from games import assert_same_players, data, optimizer_of, players
from imitations import Forwarding, by_wrapper
from torch import nn
from torch.optim.lr_scheduler import StepLR

import stackelberg_fused as sf


def _optimizer(**more: Any) -> tuple[Any, nn.Parameter, nn.Parameter]:
    body, head = (nn.Parameter(torch.full((4,), float(i + 1))) for i in range(2))
    groups = [{"params": [body]}, {"params": [head], "role": "head", "lr": 0.1}]
    return sf.StackelbergSGD(groups, lr=0.1, momentum=0.9, **more), body, head


def _fill(*params: nn.Parameter, value: float = 1.0) -> None:
    for p in params:
        p.grad = torch.full_like(p, value)


@by_wrapper
def test_a_limit_that_is_set_on_the_wrapper_clips(wrapper: Any) -> None:
    ours, body, head = _optimizer()
    wrapped = wrapper(ours)
    assert isinstance(wrapped, sf.StackelbergSGD)
    wrapped.max_grad_norm = {"body": 0.5}
    assert ours.max_grad_norm == wrapped.max_grad_norm == {"body": 0.5}
    _fill(body, head, value=100.0)
    wrapped.step()
    torch.testing.assert_close(body.detach(), torch.full((4,), 1.0 - 0.1 * 0.25))
    torch.testing.assert_close(head.detach(), torch.full((4,), 2.0 - 10.0))
    assert float(wrapped.last_step.grad_norm["body"]) == 200.0
    assert wrapped.launches == ours.launches
    ours.max_grad_norm = None
    assert wrapped.max_grad_norm is None
    with pytest.raises(ValueError, match="max_grad_norm"):
        wrapped.max_grad_norm = -1.0


@by_wrapper
def test_a_scale_that_is_set_on_the_wrapper_counts_once(wrapper: Any) -> None:
    ours, body, _ = _optimizer()
    wrapped = wrapper(ours)
    for found_inf, expected in ((1.0, 1.0), (0.0, 0.9)):
        _fill(body, value=8.0)
        wrapped.grad_scale, wrapped.found_inf = torch.tensor(8.0), torch.tensor(found_inf)
        wrapped.step()
        del wrapped.grad_scale, wrapped.found_inf
        torch.testing.assert_close(body.detach(), torch.full((4,), expected))
    assert not ours._shared.from_scaler
    with pytest.raises(AttributeError):
        ours.grad_scale  # noqa: B018


@by_wrapper
@pytest.mark.parametrize("fused", [None, True])
def test_a_scaler_that_steps_the_wrapper(wrapper: Any, fused: bool | None) -> None:
    ours, body, _ = _optimizer(fused=fused)
    wrapped, scaler = wrapper(ours), torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor, expected in ((torch.inf, 1.0), (1.0, 0.9)):
        ours.zero_grad()
        scaler.scale((body * factor).sum()).backward()
        scaler.step(wrapped)
        scaler.update()
        torch.testing.assert_close(body.detach(), torch.full((4,), expected))


@by_wrapper
def test_averages_are_in_for_both(wrapper: Any) -> None:
    ours, body, head = _optimizer(ema_decay=0.5)
    wrapped = wrapper(ours)
    _fill(body, head)
    ours.step()
    before = body.detach().clone()
    for outer, inner in ((ours, wrapped), (wrapped, ours), (wrapped, wrapped)):
        calls: list[Callable[[], Any]] = [
            *(inner.step, inner.state_dict, inner.ema_weights, inner.player("body").step),
            lambda side=inner: side.load_state_dict({}),
            lambda side=inner: side.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
            lambda side=inner: copy.deepcopy(side),
        ]
        with outer.ema_weights():
            assert not torch.equal(body, before)
            for call in calls:
                with pytest.raises(RuntimeError, match="leave ema_weights"):
                    call()
        assert_same_bits(body.detach(), before)
    wrapped.step()


@by_wrapper
def test_a_state_dict_that_is_loaded_through_the_wrapper(wrapper: Any) -> None:
    other, *params = _optimizer()
    _fill(*params, value=3.0)
    other.step()
    other.param_groups[0]["lr"] = 0.05
    saved = copy.deepcopy(other.state_dict())
    ours, body, head = _optimizer()
    wrapped = wrapper(ours)
    _fill(body, head)
    wrapped.step()
    wrapped.load_state_dict(saved)
    for side in (ours, wrapped):
        assert side.param_groups[0]["lr"] == 0.05
        assert side.state[body]["momentum_buffer"].tolist() == [3.0] * 4
    before = body.detach().clone()
    ours.step()
    torch.testing.assert_close(body.detach(), before - 0.05 * (0.9 * 3.0 + 1.0))
    ours.load_state_dict(saved)
    assert wrapped.state is ours.state
    assert wrapped.param_groups is ours.param_groups


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
@by_wrapper
def test_copies_of_a_wrapper(wrapper: Any, copied: Any) -> None:
    """They are copies of the optimizer, with settings of their own."""
    ours, body, head = _optimizer(max_grad_norm=2.0)
    wrapped = wrapper(ours)
    _fill(body, head)
    wrapped.step()
    again = copied(copied(wrapped))
    assert type(again) is sf.StackelbergSGD
    assert again.max_grad_norm == 2.0
    for entry, other in zip(again.state.values(), ours.state.values(), strict=True):
        assert_same_bits(entry["momentum_buffer"], other["momentum_buffer"])
    again.max_grad_norm = 3.0
    assert ours.max_grad_norm == wrapped.max_grad_norm == 2.0
    is_deep = copied is not copy.copy
    assert (again.param_groups[0] is not ours.param_groups[0]) == is_deep
    if is_deep:
        p, before = again.param_groups[0]["params"][0], body.detach().clone()
        p.grad = torch.ones(4)
        again.step()
        assert_same_bits(body.detach(), before)
        assert not torch.equal(p, before)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_of_an_optimizer_share_no_setting(copied: Any) -> None:
    ours, body, head = _optimizer()
    _fill(body, head)
    ours.step()
    again = copied(ours)
    again.max_grad_norm = 1.0
    again.found_inf = torch.ones(())
    assert ours.max_grad_norm is None
    assert not hasattr(ours, "found_inf")
    assert again.player("head")._owner is again
    again.step()  # skipped
    ours.step()


@by_wrapper
def test_hooks_groups_and_players(wrapper: Any) -> None:
    ours, body, head = _optimizer()
    wrapped = wrapper(ours)
    seen: list[str] = []
    wrapped.register_step_pre_hook(lambda *_: seen.append("pre"))
    wrapped.register_step_post_hook(lambda *_: seen.append("post"))
    wrapped.register_state_dict_pre_hook(lambda *_: seen.append("state_dict"))
    wrapped.add_param_group({"params": [added := nn.Parameter(torch.ones(2))]})
    _fill(body, head, added)
    wrapped.step()
    ours.state_dict()
    assert seen == ["pre", "post", "state_dict"]
    assert added.tolist() == pytest.approx([0.9] * 2)
    assert len(ours.param_groups) == len(wrapped.param_groups) == 3
    assert wrapped.player("head") is ours.player("head")
    wrapped.player("head").step()
    assert float(ours.state[head]["step"]) == 2
    assert float(ours.state[body]["step"]) == 1
    wrapped.zero_grad(role="body")
    assert body.grad is None
    assert head.grad is not None
    assert wrapped.backend == ours.backend


@by_wrapper
def test_what_torch_keeps_in_attributes_may_be_replaced_on_the_wrapper(wrapper: Any) -> None:
    ours, body, head = _optimizer()
    wrapped = wrapper(ours)
    groups = [dict(ours.param_groups[0])]
    wrapped.param_groups = groups
    wrapped.state = defaultdict(dict)
    assert ours.param_groups is groups
    assert ours.state is wrapped.state
    _fill(body, head)
    wrapped.step()
    assert (body[0].item(), head[0].item()) == (pytest.approx(0.9), 2.0)


@by_wrapper
def test_an_alternating_step_by_a_wrapper_that_cannot_step_one_role(wrapper: Any) -> None:
    (body, head), twins = players(), players()
    wrapped = wrapper(optimizer_of(body, head))
    sf.alternating_step(body, head, F.cross_entropy, wrapped, *data(0))
    sf.alternating_step(*twins, F.cross_entropy, optimizer_of(*twins), *data(0))
    assert_same_players((body, head), twins)


def test_an_alternating_step_goes_through_a_wrapper_that_can() -> None:
    seen = []

    class Watching(Forwarding):
        def step(self, closure: Any = None, **how: Any) -> Any:
            seen.append(how["role"])
            return self.optimizer.step(closure, **how)

    body, head = players()
    wrapped = Watching(optimizer_of(body, head))
    sf.alternating_step(body, head, F.cross_entropy, wrapped, *data(0), 2)
    assert seen == ["head", "head", "body"]


@by_wrapper
def test_a_scheduler_of_the_wrapper(wrapper: Any) -> None:
    ours, body, _ = _optimizer()
    wrapped = wrapper(ours)
    scheduler = StepLR(wrapped, 1, 0.5)
    for lr in (0.1, 0.05):
        assert ours.param_groups[0]["lr"] == pytest.approx(lr)
        _fill(body)
        wrapped.step()
        scheduler.step()


def _while_a_step_runs(ours: Any, calls: list[Callable[[], Any]]) -> list[BaseException | None]:
    """What calls raise that come while another thread is in the middle of a step."""
    in_the_step, go_on, found = threading.Event(), threading.Event(), []
    (unit,) = ours._engine.units
    launch = unit.backend.step

    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(unit_backend, name)

        def step(self, prepared: Any) -> int:
            in_the_step.set()
            assert go_on.wait(60)
            return launch(prepared)

    unit_backend, unit.backend = unit.backend, Slow()
    thread = threading.Thread(target=ours.step)
    thread.start()
    assert in_the_step.wait(60)
    try:
        for call in calls:
            try:
                call()
                found.append(None)
            except RuntimeError as error:
                found.append(error)
    finally:
        go_on.set()
        thread.join()
        unit.backend = unit_backend
    return found


@pytest.mark.parametrize("grads", ["gather", "flat"])
def test_two_threads_at_a_time(grads: str) -> None:
    ours, body, head = _optimizer(ema_decay=0.5, grads=grads)
    wrapped = Forwarding(ours)
    (body + head).sum().backward()
    ours.step()
    saved = copy.deepcopy(ours.state_dict())
    calls: dict[str, Callable[[], Any]] = {
        "step": ours.step,
        "step of the wrapper": wrapped.step,
        "step of a player": ours.player("head").step,
        "load_state_dict": lambda: ours.load_state_dict(saved),
        "add_param_group": lambda: ours.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        "ema_weights": lambda: ours.ema_weights().__enter__(),
        "backend": lambda: ours.backend,
        "zero_grad": ours.zero_grad,
        "zero_grad of a player": ours.player("head").zero_grad,
    }
    if grads == "flat":
        calls["flat_grads"] = lambda: ours.flat_grads
    found = _while_a_step_runs(ours, list(calls.values()))
    for name, error in zip(calls, found, strict=True):
        assert "another thread is in a step" in str(error), name
    assert len(ours.param_groups) == 2
    assert float(ours.state[body]["step"]) == 2
    # what only reads torch's containers goes on
    assert _while_a_step_runs(ours, [ours.state_dict, lambda: ours.param_groups]) == [None] * 2
    for call in calls.values():
        call()  # all may come one after the other
        ours._shared.is_swapped = False


def test_a_step_that_raises_lets_the_next_one_in() -> None:
    ours, body, head = _optimizer()
    _fill(body, head)
    ours.param_groups[0]["lr"] = math.nan
    for call in (
        ours.step,
        lambda: ours.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
    ):
        with pytest.raises(ValueError, match="lr"):
            call()
    ours.param_groups[0]["lr"] = 0.1
    ours.step()


def test_many_threads_with_a_lock_of_their_own_take_turns() -> None:
    params = [nn.Parameter(normal((9, 5), i)) for i in range(3)]
    ours, lock = sf.StackelbergAdamW(params), threading.Lock()

    def train() -> None:
        for _ in range(20):
            with lock:
                for p in params:
                    p.grad = torch.ones_like(p)
                ours.step()

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(float(ours.state[p]["step"]) == 80 for p in params)


def test_a_closure_may_use_its_optimizer() -> None:
    ours, body, head = _optimizer()

    def closure() -> torch.Tensor:
        ours.zero_grad()
        assert ours.backend
        ours.load_state_dict(ours.state_dict())
        ours.step(role="head")
        loss = (body + head).sum()
        loss.backward()
        return loss

    ours.step(closure)
    assert body[0].item() == pytest.approx(0.9)
