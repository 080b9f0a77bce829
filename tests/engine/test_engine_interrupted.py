"""A step that an interrupt (Ctrl-C) ends anywhere: all of it happened, or nothing, and training goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import by_backend, by_native_backend, chosen
from cases import normal, set_gradients
from checks import all_params, assert_same_optimizers
from interrupted import ARRIVALS, Interrupt, Interrupting, raising_handler
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.engine.launch_unit import LaunchUnit

pytestmark = pytest.mark.slow


def _dense(device: str) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(normal(n, n).to(device)) for n in (3, 0, 40)]}]


def _gapped(device: str) -> list[dict[str, Any]]:
    base = normal((6, 10), 1).to(device)
    return [{"params": [nn.Parameter(base[:, :5]), nn.Parameter(normal(7, 2).to(device))]}]


def _projected(device: str) -> list[dict[str, Any]]:
    ball = {"constraint": sf.L2Ball(0.5), "ema_decay": 0.5}
    return [{**_dense(device)[0], **ball}, _gapped(device)[0]]


def _in_turns(device: str) -> list[dict[str, Any]]:
    waiting = {"update_every": 3, "update_every_grads": "mean"}
    return [{**_dense(device)[0], **waiting}, {**_dense(device)[0], "role": "head"}]


def _of_two_tables(device: str) -> list[dict[str, Any]]:
    doubles = nn.Parameter(normal(5, 3, torch.float64).to(device))
    return [*_gapped(device), {"params": [doubles], "role": "head"}]


def _counted_on_a_device(device: str) -> list[dict[str, Any]]:
    return [{**_dense(device)[0], "capturable": True}]


KINDS = {
    f.__name__.strip("_"): f for f in (_dense, _gapped, _projected, _in_turns, _counted_on_a_device)
}
by_kind = pytest.mark.parametrize("kind", KINDS)


def _pair(kind: Callable[[str], list[dict[str, Any]]], backend: str, **more: Any) -> list[Any]:
    sides = []
    for _ in range(2):
        instance, device = chosen(backend)
        sides.append(
            sf.StackelbergAdamW(kind(device), lr=0.1, backend=instance, amsgrad=True, **more)
        )
    return sides


def _counts(optimizer: Any) -> list[tuple[float, float]]:
    entries = [optimizer.state[p] for p in all_params(optimizer) if p in optimizer.state]
    return [(float(e.get("step", 0)), float(e.get("waited", 0))) for e in entries]


def _change(optimizer: Any, number: int, edits: bool = False) -> None:
    """What training changes between steps: gradients, which of them there are, rates; perhaps other settings."""
    set_gradients(optimizer.param_groups, number, skip_every=2 if number // 2 % 2 else 0)
    optimizer.param_groups[0]["lr"] = 0.1 / (1 + number % 5)
    if edits:
        optimizer.param_groups[0]["weight_decay"] = 0.01 * (number // 100 % 3)


def _follow(
    ours: Any, twin: Any, before: list[tuple[float, float]], number: int, edits: bool = False
) -> None:
    """Have the twin take the step if ours did; both have to be the same then."""
    if _counts(ours) != before:
        _change(twin, number, edits)
        twin.step()
    assert_same_optimizers(ours, twin, f"interrupted at {number}")


def _sweep(ours: Any, twin: Any, stride: int, edits: bool = False) -> int:
    """Interrupt one step after the other, each `stride` instructions later; how many of these were taken."""
    for optimizer in (ours, twin):
        for number in range(2):
            _change(optimizer, number)
            optimizer.step()
    taken = 0

    def interrupt(number: int) -> bool:
        nonlocal taken
        _change(ours, number, edits)
        before, interrupting = _counts(ours), Interrupting(number)
        interrupting(ours.step)
        taken += _counts(ours) != before
        _follow(ours, twin, before, number, edits)
        return interrupting.came

    number, last = 1, 1
    while interrupt(number):
        last = number
        # beyond 2000 those are steps of an engine that is built again, or reads tensors in Python
        number += stride if number < 2000 else 10 * stride
    # little comes after the launch
    for closer in range(max(last - 60, 1), number, 3):
        interrupt(closer)
    return taken


@by_backend
@by_kind
def test_all_or_nothing(backend: str, kind: str) -> None:
    stride = {"cpu": 5, "avx2": 13, "baseline": 13}.get(backend, 67)
    assert _sweep(*_pair(KINDS[kind], backend), stride) > 1


@by_kind
def test_an_edit_is_not_forgotten(kind: str) -> None:
    """An interrupted one has the engine built again, in a step that takes many more instructions."""
    _sweep(*_pair(KINDS[kind], "cpu"), 211, edits=True)


@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.filterwarnings("ignore:.*stepped by the reference")
def test_several_tables_are_one_step(backend: str) -> None:
    kind = _of_two_tables if backend == "auto" else _gapped
    assert _sweep(*_pair(kind, backend), 13) > 1


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@by_kind
def test_a_first_step_that_allocates_state(backend: str, kind: str) -> None:
    number, came = 1, True
    while came:
        ours, twin = _pair(KINDS[kind], backend)
        set_gradients(ours.param_groups, 0)
        interrupting = Interrupting(number)
        interrupting(ours.step)
        if any(count for counts in _counts(ours) for count in counts):
            set_gradients(twin.param_groups, 0)
            twin.step()
        for optimizer in (ours, twin):
            set_gradients(optimizer.param_groups, 1)
            optimizer.step()
        assert_same_optimizers(ours, twin, f"interrupted at {number}")
        number, came = number + (101 if backend == "cpu" else 411), interrupting.came


@by_native_backend
@by_kind
@pytest.mark.parametrize("arrival", ARRIVALS)
def test_an_interrupt_while_the_kernel_runs(
    backend: str, kind: str, arrival: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, twin = _pair(KINDS[kind], backend)
    conclusion = LaunchUnit._conclusion

    def interrupted(unit: LaunchUnit, *args: Any) -> Any:
        return [ARRIVALS[arrival], *conclusion(unit, *args)]

    for number in range(4):
        _change(ours, number)
        before = _counts(ours)
        with monkeypatch.context() as patched, raising_handler():
            patched.setattr(LaunchUnit, "_conclusion", interrupted)
            with pytest.raises(Interrupt):
                ours.step()
        assert _counts(ours) != before
        _follow(ours, twin, before, number)


def test_an_error_of_the_kernel_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, twin = _pair(_gapped, "cpu")
    set_gradients(ours.param_groups, 0)
    with monkeypatch.context() as patched:
        patched.setattr(ours._engine.units[0].backend, "_isa", "no such")
        with pytest.raises(RuntimeError, match="no such kernel"):
            ours.step()
    assert not any(float(e["step"]) for e in ours.state.values())
    for optimizer in (ours, twin):
        set_gradients(optimizer.param_groups, 1)
        optimizer.step()
    assert_same_optimizers(ours, twin)
