"""What `replace` refuses, by the parameter's name, with nothing modified; and interrupts, and memory that runs out."""

from __future__ import annotations

import copy
import threading
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
    assert found[2]["param_groups"] == before[2]["param_groups"]
    for key, entry in before[2]["state"].items():
        for name, value in entry.items():
            assert_same_bits(found[2]["state"][key][name], value, name)


def _points(*shape: int, **how: Any) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape or (5, 3), **how))


REFUSED: dict[str, tuple[type[Exception], str, Callable[[Any, Any], Any]]] = {
    "none of its own": (ValueError, r"shape \(6, 3\) is no parameter of this optimizer", lambda o, p: o.replace(_points(6, 3), _points())),
    "no parameter": (ValueError, "a list is no parameter", lambda o, p: o.replace([p], _points())),
    "no new one": (TypeError, f"{LABEL}: expected a tensor in its place, got list", lambda o, p: o.replace(p, [[1.0]])),
    "another of its own": (ValueError, f"{LABEL}: the new parameter is already .* 'head'", lambda o, p: o.replace(p, all_params(o)[2], [0, 0])),
    "dtype": (ValueError, f"{LABEL}: its dtype is torch.float32, .* torch.float64", lambda o, p: o.replace(p, _points(dtype=torch.float64), range(5))),
    "device": (ValueError, f"{LABEL}: its device is cpu, .* meta", lambda o, p: o.replace(p, _points(device="meta"), range(5))),
    "other columns": (ValueError, rf"{LABEL}: its shape is \(6, 3\), .* \(6, 4\)", lambda o, p: o.replace(p, _points(6, 4))),
    "other dimensions": (ValueError, rf"{LABEL}: its shape is \(6, 3\), .* \(6,\)", lambda o, p: o.replace(p, _points(6))),
    "no gradient": (ValueError, f"{LABEL}: .* wrap it in torch.nn.Parameter", lambda o, p: o.replace(p, torch.ones(6, 3))),
    "no leaf": (ValueError, f"{LABEL}", lambda o, p: o.replace(p, p * 2)),
    "lazy": (ValueError, f"{LABEL}: the new parameter has no shape", lambda o, p: o.replace(p, nn.UninitializedParameter())),
    "no rows": (ValueError, f"{LABEL}: it has 6 rows, the new parameter 5", lambda o, p: o.replace(p, _points())),
    "too few rows": (ValueError, rf"{LABEL}: rows has shape \(4,\), expected \(5,\)", lambda o, p: o.replace(p, _points(), [0] * 4)),
    "rows of two dimensions": (ValueError, rf"{LABEL}: rows has shape \(5, 1\)", lambda o, p: o.replace(p, _points(), torch.zeros(5, 1, dtype=torch.int64))),
    "beyond the last row": (ValueError, f"{LABEL}: rows holds 6, expected a row .* has 6", lambda o, p: o.replace(p, _points(), [0, 1, 6, -1, 2])),
    "below -1": (ValueError, f"{LABEL}: rows holds -2", lambda o, p: o.replace(p, _points(), np.array([0, 1, -2, 3, 3]))),
    "a mask": (ValueError, f"{LABEL}: rows are of dtype torch.bool, .* nonzero", lambda o, p: o.replace(p, _points(), torch.ones(5, dtype=torch.bool))),
    "fractions": (ValueError, f"{LABEL}: rows are of dtype torch.float32", lambda o, p: o.replace(p, _points(), torch.zeros(5))),
    "a list of fractions": (ValueError, f"{LABEL}: rows are of dtype", lambda o, p: o.replace(p, _points(), [0.5] * 5)),
    "words": (ValueError, f"{LABEL}: rows are no integers", lambda o, p: o.replace(p, _points(), ["a"] * 5)),
    "a number": (TypeError, f"{LABEL}: rows must be a tensor or a sequence of integers, got int", lambda o, p: o.replace(p, _points(), 3)),
    "a string": (TypeError, f"{LABEL}: rows must be", lambda o, p: o.replace(p, _points(), "01234")),
    "rows without memory": (ValueError, f"{LABEL}: rows have no memory", lambda o, p: o.replace(p, _points(), torch.zeros(5, dtype=torch.int64, device="meta"))),
    "shared memory": (ValueError, "shares? memory", lambda o, p: o.replace(p, nn.Parameter(all_params(o)[2].detach()), [0, 0])),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name_with_nothing_modified(what: str) -> None:
    kind, said, call = REFUSED[what]
    ours, twin = _optimizer(), _optimizer()
    before = _look(ours)
    with pytest.raises(kind, match=said):
        call(ours, all_params(ours)[0])
    _assert_same(_look(ours), before)
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


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


def test_beside_a_step_of_another_thread() -> None:
    ours, raised = _optimizer(), []

    def closure() -> float:
        return 0.0

    def hook(*_: Any) -> None:
        raised.append(_raised(lambda: ours.replace(all_params(ours)[0], _points(), range(5))))

    ours._shared.running["call"] = object()
    thread = threading.Thread(target=hook)
    thread.start()
    thread.join()
    del ours._shared.running["call"]
    assert "another thread" in str(raised[0])
    ours.step(closure)


def _raised(call: Callable[[], Any]) -> BaseException | None:
    try:
        call()
    except RuntimeError as error:
        return error
    return None


def test_a_constraint_that_the_new_shape_breaks() -> None:
    """An error that comes late, as the engine is built, is undone."""
    ours = _optimizer(grads="flat", release=None)
    before, new = _look(ours), nn.Parameter(all_params(ours)[2].detach().view(2, 3))
    with pytest.raises(ValueError, match="memory"):
        ours.replace(all_params(ours)[0], new, [0, 0])
    assert new.grad is None
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
        with pytest.raises(ValueError, match="parameter 0 of param group 0 .*: it is sharded"):
            sharded.replace(shard, _points(), range(5))
    finally:
        distributed.destroy_process_group()


def test_memory_that_runs_out() -> None:
    ours, twin = _optimizer(), _optimizer()
    before, refusals = _look(ours), 0
    while True:
        new = _points()
        try:
            with FailingAllocator(refusals):
                ours.replace(all_params(ours)[0], new, [0, -1, 2, 3, 5])
            break
        except NoMemory:
            refusals += 1
        _assert_same(_look(ours), before)
        assert_same_bits(new, torch.ones(5, 3))
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
        number, came = number + 211, interrupting.came
    assert kinds == {False, True}
