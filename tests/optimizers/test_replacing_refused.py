"""What `replace` refuses, by the parameter's name, with nothing modified; and interrupts, and memory that runs out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import normal, step
from checks import all_params, assert_same_bits, assert_same_optimizers
from failing_allocator import FailingAllocator, NoMemory
from interrupted import ARRIVALS, Interrupting
from torch import nn

import stackelberg_fused as sf

LABEL = r"parameter 'points' of param group 0 \(body\)"


def _optimizer(**more: Any) -> Any:
    named = [("points", nn.Parameter(normal((6, 3), 1))), ("bias", nn.Parameter(normal((4,), 2)))]
    head = [("head", nn.Parameter(normal((2, 3), 3)))]
    groups = [{"params": named}, {"params": head, "role": "head"}]
    optimizer = sf.StackelbergAdamW(groups, lr=0.1, **{"backend": "cpu", "ema_decay": 0.9, **more})
    step(optimizer)
    return optimizer


def _look(optimizer: Any) -> list[Any]:
    """Everything that a replacement changes, by identity, and copies of the contents."""
    params = all_params(optimizer)
    entries = [(id(p), {n: id(v) for n, v in e.items()}) for p, e in optimizer.state.items()]
    return [[id(p) for p in params], entries, copy.deepcopy(optimizer.state_dict())]


def _assert_same(found: list[Any], before: list[Any]) -> None:
    assert found[:2] == before[:2]
    _assert_same_values(found, before)


def _assert_same_values(found: list[Any], before: list[Any]) -> None:
    assert found[0] == before[0]
    assert found[2]["param_groups"] == before[2]["param_groups"]
    for key, entry in before[2]["state"].items():
        for name, value in entry.items():
            assert_same_bits(found[2]["state"][key][name], value, name)


def _points(*shape: int, **how: Any) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape or (5, 3), **how))


def _aliased(o: Any) -> nn.Parameter:
    """In the memory of the head."""
    return nn.Parameter(all_params(o)[2].detach())


# error, message, the new parameter, and rows
NEW: dict[str, tuple[type[Exception], str, Callable[[Any], Any], Any]] = {
    "no tensor": (TypeError, "expected a tensor in its place, got list", lambda o: [[1.0]], None),
    "another": (ValueError, "new .* is already .* 'head'", lambda o: all_params(o)[2], [0, 0]),
    "dtype": (
        ValueError,
        "its dtype is torch.float32, .* torch.float64",
        lambda o: _points(dtype=torch.float64),
        range(5),
    ),
    "device": (
        ValueError,
        "its device is cpu, .* meta",
        lambda o: _points(device="meta"),
        range(5),
    ),
    "columns": (ValueError, r"its shape is \(6, 3\), .* \(6, 4\)", lambda o: _points(6, 4), None),
    "dimensions": (ValueError, r"its shape is \(6, 3\), .* \(6,\)", lambda o: _points(6), None),
    "no gradient": (ValueError, "in torch.nn.Parameter", lambda o: torch.ones(6, 3), None),
    "no leaf": (ValueError, "non-leaf", lambda o: all_params(o)[0] * 2, None),
    "lazy": (ValueError, "new .* has no shape", lambda o: nn.UninitializedParameter(), None),
    "fewer rows": (ValueError, "it has 6 rows, the new parameter 5", lambda o: _points(), None),
    "overlap": (ValueError, "overlap in memory", _aliased, [0, 0]),
}
ROWS: dict[str, tuple[type[Exception], str, Any]] = {
    "too few": (ValueError, r"rows has shape \(4,\), expected \(5,\)", [0] * 4),
    "two dimensions": (ValueError, r"rows has shape \(5, 1\)", torch.zeros(5, 1).long()),
    "beyond the last": (ValueError, "rows holds 6, expected a row .* has 6", [0, 1, 6, -1, 2]),
    "below -1": (ValueError, "rows holds -2", np.array([0, 1, -2, 3, 3])),
    "a mask": (ValueError, "of dtype torch.bool, .*nonzero", torch.ones(5, dtype=torch.bool)),
    "fractions": (ValueError, "rows are of dtype torch.float32", torch.zeros(5)),
    "a list of fractions": (ValueError, "rows are of dtype", [0.5] * 5),
    "words": (ValueError, "rows are no integers", ["a"] * 5),
    "a number": (TypeError, "must be a tensor or a sequence of integers, got int", 3),
    "a string": (TypeError, "rows must be", "01234"),
    "no memory": (ValueError, "rows have no memory", torch.zeros(5, device="meta").long()),
}


@pytest.mark.parametrize("what", NEW)
def test_a_new_parameter_is_refused_with_nothing_modified(what: str) -> None:
    kind, said, make, rows = NEW[what]
    ours, twin = _optimizer(), _optimizer()
    before = _look(ours)
    with pytest.raises(kind, match=said if what == "overlap" else f"{LABEL}: .*{said}"):
        ours.replace(all_params(ours)[0], make(ours), rows)
    _assert_same(_look(ours), before)
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


@pytest.mark.parametrize("what", ROWS)
def test_rows_are_refused_with_nothing_modified(what: str) -> None:
    kind, said, rows = ROWS[what]
    ours = _optimizer()
    before = _look(ours)
    with pytest.raises(kind, match=f"{LABEL}: .*{said}"):
        ours.replace(all_params(ours)[0], _points(), rows)
    _assert_same(_look(ours), before)


@pytest.mark.parametrize("old", [_points(6, 3), [1.0], nn.UninitializedParameter()])
def test_what_is_no_parameter_of_the_optimizer(old: Any) -> None:
    ours = _optimizer()
    before = _look(ours)
    with pytest.raises(ValueError, match=r"replace\(\): a .* is no parameter of this optimizer"):
        ours.replace(old, _points(), range(5))
    _assert_same(_look(ours), before)


def test_a_number_has_no_rows() -> None:
    ours = sf.StackelbergAdam([nn.Parameter(torch.ones(()))], lr=0.1)
    step(ours)
    (old,) = all_params(ours)
    with pytest.raises(ValueError, match="it has no dimension, so rows must be None"):
        ours.replace(old, nn.Parameter(torch.ones(())), [])
    kept = ours.state[old]["exp_avg"]
    ours.replace(old, new := nn.Parameter(torch.zeros(())))
    assert_same_bits(ours.state[new]["exp_avg"], kept)


def test_one_that_was_replaced_before() -> None:
    ours = _optimizer()
    old = all_params(ours)[0]
    ours.replace(old, _points(), range(5))
    with pytest.raises(ValueError, match="which may have replaced it before"):
        ours.replace(old, _points(), range(5))


def test_within_averages() -> None:
    ours = _optimizer()
    with ours.ema_weights(), pytest.raises(RuntimeError, match=r"replace\(\): .* averages"):
        ours.replace(all_params(ours)[0], _points(), range(5))


def test_while_another_thread_steps() -> None:
    ours = _optimizer()
    before = _look(ours)
    ours._shared.running["call"] = object()  # as that thread has it
    with pytest.raises(RuntimeError, match=r"replace\(\): another thread is in a step"):
        ours.replace(all_params(ours)[0], _points(), range(5))
    del ours._shared.running["call"]
    _assert_same(_look(ours), before)


def test_a_shard() -> None:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("no torch.distributed")
    from torch.distributed.tensor import DTensor, Replicate
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = distributed.init_device_mesh("cpu", (2,))
        shard = nn.Parameter(DTensor.from_local(torch.ones(5, 3), mesh, [Replicate()]))
        ours = _optimizer()
        before = _look(ours)
        with pytest.raises(ValueError, match=f"{LABEL}: the new parameter is sharded"):
            ours.replace(all_params(ours)[0], shard, range(5))
        _assert_same(_look(ours), before)
        sharded = sf.StackelbergAdam([shard], lr=0.1)
        with pytest.raises(
            ValueError, match=r"parameter 0 of param group 0 \(body\): it is sharded"
        ):
            sharded.replace(shard, _points(), range(5))
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("more", [{}, {"grads": "flat"}])
@pytest.mark.filterwarnings("ignore:.*not in the flat buffer")
def test_memory_that_runs_out(more: dict[str, Any]) -> None:
    ours, twin = _optimizer(**more), _optimizer(**more)
    before, refusals = _look(ours), 0
    while True:
        new = _points()
        try:
            with FailingAllocator(refusals):
                ours.replace(all_params(ours)[0], new, [0, -1, 2, 3, 5])
            break
        except NoMemory:
            refusals += 1
        _assert_same_values(_look(ours), before)
        assert_same_bits(new, torch.ones(5, 3))
        assert new.grad is None
    assert refusals > 5
    twin.replace(all_params(twin)[0], _points(), [0, -1, 2, 3, 5])
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


@pytest.mark.slow
@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("more", [{}, {"grads": "flat"}])
@pytest.mark.filterwarnings("ignore:.*not in the flat buffer")
def test_interrupted_it_is_replaced_or_not(arrival: str, more: dict[str, Any]) -> None:
    def replace(optimizer: Any) -> None:
        optimizer.replace(all_params(optimizer)[0], _points(), [0, -1, 2, 3, 5])

    number, kinds, came = 1, set(), True
    while came:
        ours, twin, interrupting = (
            _optimizer(**more),
            _optimizer(**more),
            Interrupting(number, arrival),
        )
        interrupting(lambda made=ours: replace(made))
        is_done = len(all_params(ours)[0]) == 5
        kinds.add(is_done)
        if is_done:
            replace(twin)
        assert_same_optimizers(ours, twin, f"interrupted at {number}")
        step(ours, twin, seed=1)
        assert_same_optimizers(ours, twin, f"interrupted at {number}")
        number, came = number + 499, interrupting.came
    assert kinds == {False, True}
