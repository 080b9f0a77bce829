"""One factor for all groups: values, any torch optimizer, checkpoints, torch's other schedulers, what is refused."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, LambdaLR, LinearLR, SequentialLR

import stackelberg_fused as sf

RATES = [3e-5, 1e-3, 2e-2]
OPTIMIZERS = {
    "ours": lambda groups: sf.StackelbergAdamW(groups, lr=1.0),
    "torch": lambda groups: torch.optim.AdamW(groups, lr=1.0),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1.0),
}
by_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def _groups(rates: list[Any] = RATES) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(2))], "lr": lr} for lr in rates]


def _run(optimizer: Any, schedule: Any, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
        schedule.step()
    return rates


def _wave(step: int) -> float:
    return abs(math.sin(0.7 * step))  # 0 at first


@by_optimizer
def test_every_group_has_its_own_rate_times_one_factor(make: Any) -> None:
    optimizer = make(_groups())
    found = _run(optimizer, sf.scale_schedule(optimizer, _wave), 9)
    assert found == [[lr * _wave(k) for lr in RATES] for k in range(9)]


@by_optimizer
def test_as_torchs_lambda(make: Any) -> None:
    """The one function of a `LambdaLR` gives the same bits."""
    ours, theirs = make(_groups()), make(_groups())
    expected = _run(theirs, LambdaLR(theirs, _wave), 9)
    assert _run(ours, sf.scale_schedule(ours, _wave), 9) == expected


def test_rates_in_tensors_stay_the_same_tensors() -> None:
    optimizer = sf.StackelbergAdamW(_groups([torch.tensor(0.5), torch.tensor(2.0)]))
    before = [group["lr"] for group in optimizer.param_groups]
    found = _run(optimizer, sf.scale_schedule(optimizer, lambda k: 0.5**k), 4)
    assert found == [[0.5 * 0.5**k, 2.0 * 0.5**k] for k in range(4)]
    assert all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, before, strict=True))


@by_optimizer
def test_resumed(make: Any) -> None:
    """The state is plain, whatever the function is, and goes through a file that holds nothing but weights."""
    optimizer = make(_groups())
    schedule = sf.scale_schedule(optimizer, lambda k: 1 / (1 + k))
    _run(optimizer, schedule, 4)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    again = make(_groups())
    other = sf.scale_schedule(again, lambda k: 1 / (1 + k))
    again.load_state_dict(states[0])
    other.load_state_dict(states[1])
    assert other.get_last_lr() == schedule.get_last_lr()
    assert _run(again, other, 4) == _run(optimizer, schedule, 4)


def test_another_ratio_on_resuming() -> None:
    """Rates are the optimizer's: a schedule's state brings none of another run."""
    old, new = sf.StackelbergAdamW(_groups()), sf.StackelbergAdamW(_groups([1.0, 2.0, 30.0]))
    saved = sf.scale_schedule(old, lambda k: 0.5**k)
    _run(old, saved, 3)
    schedule = sf.scale_schedule(new, lambda k: 0.5**k)
    schedule.load_state_dict(saved.state_dict())
    schedule.step()
    assert [group["lr"] for group in new.param_groups] == [1 / 16, 2 / 16, 30 / 16]
    new.param_groups[2]["initial_lr"] = 64.0
    schedule.step()
    assert [group["lr"] for group in new.param_groups] == [1 / 32, 2 / 32, 2.0]


@by_optimizer
def test_a_group_that_is_added(make: Any) -> None:
    """The rate that it came with is its initial rate; torch's `LambdaLR` raises at its next step."""
    optimizer = make(_groups())
    schedule = sf.scale_schedule(optimizer, lambda k: 0.5**k)
    _run(optimizer, schedule, 2)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 8.0})
    assert _run(optimizer, schedule, 2)[1] == [*(lr / 8 for lr in RATES), 1.0]
    assert schedule.get_last_lr() == [*(lr / 16 for lr in RATES), 0.5]


def test_within_torchs_schedulers() -> None:
    optimizer = sf.StackelbergAdamW(_groups())
    warm_up, ours = LinearLR(optimizer, 0.5, total_iters=2), sf.scale_schedule(optimizer, _wave)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The epoch parameter")
        found = _run(optimizer, SequentialLR(optimizer, [warm_up, ours], [2]), 5)
    factors = [0.5, 0.75, _wave(0), _wave(1), _wave(2)]
    assert found == [pytest.approx([lr * f for lr in RATES]) for f in factors]
    optimizer = sf.StackelbergAdamW(_groups())
    chained = ChainedScheduler([sf.scale_schedule(optimizer, lambda k: 0.5**k)])
    assert _run(optimizer, chained, 3)[2] == [lr / 4 for lr in RATES]


def test_one_player() -> None:
    groups = _groups([0.1, 0.2])
    groups[1]["role"] = "head"
    optimizer = sf.StackelbergAdamW(groups)
    schedule = sf.scale_schedule(optimizer.player("head"), lambda k: 1 + k)
    assert _run(optimizer, schedule, 3)[2] == pytest.approx([0.1, 0.6])


@pytest.mark.parametrize("bad", [-0.5, float("nan"), float("inf")])
def test_a_factor_that_is_none_changes_no_rate(bad: float) -> None:
    optimizer = sf.StackelbergAdamW(_groups())
    schedule = sf.scale_schedule(optimizer, lambda k: bad if k == 2 else 1.0)
    _run(optimizer, schedule, 1)
    with pytest.raises(ValueError, match=r"fn\(2\) must be finite and >= 0"):
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == RATES


@pytest.mark.parametrize("bad", [None, "1", [1.0, 1.0, 1.0]])
def test_what_is_no_number_is_refused(bad: Any) -> None:
    optimizer = sf.StackelbergAdamW(_groups())
    with pytest.raises(TypeError, match=r"fn\(0\) must be a number"):
        sf.scale_schedule(optimizer, lambda k: bad)
    with pytest.raises(TypeError, match="fn must be callable"):
        sf.scale_schedule(optimizer, bad)
    assert [group["lr"] for group in optimizer.param_groups] == RATES


@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_warm_ups_reach_one_and_decay_to_the_floor(warmup: int) -> None:
    cosine = sf.warmup_cosine(20, warmup=warmup, floor=0.1)
    line = sf.warmup_linear(20, warmup=warmup, floor=0.1)
    stable = sf.warmup_stable_decay(20, warmup=warmup, decay=4, floor=0.1)
    for fn in (cosine, line, stable):
        assert [fn(k) for k in range(warmup)] == [(k + 1) / (warmup + 1) for k in range(warmup)]
        assert fn(warmup) == 1.0
        after = [fn(k) for k in range(warmup, 20)]
        assert after == sorted(after, reverse=True)
        assert fn(20) == fn(10**9) == 0.1
        assert pickle.loads(pickle.dumps(fn)) == copy.copy(fn) == fn
    middle = warmup + (20 - warmup) // 2
    share = (middle - warmup) / (20 - warmup)
    assert line(middle) == pytest.approx(1 - 0.9 * share)
    assert cosine(middle) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * share)))
    assert [stable(k) for k in (16, 17, 18, 19)] == pytest.approx([1, 0.775, 0.55, 0.325])
    assert stable(15) == 1.0


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: sf.warmup_cosine(10, warmup=10), ValueError, "leave room"),
        (lambda: sf.warmup_cosine(0), ValueError, "leave room"),
        (lambda: sf.warmup_linear(10, warmup=-1), ValueError, "leave room"),
        (lambda: sf.warmup_stable_decay(10, warmup=5, decay=6), ValueError, "leave room"),
        (lambda: sf.warmup_stable_decay(10, decay=0), ValueError, "leave room"),
        (lambda: sf.warmup_cosine(10, floor=1.5), ValueError, "floor"),
        (lambda: sf.warmup_cosine(10, floor=float("nan")), ValueError, "floor"),
        (lambda: sf.warmup_cosine(10, floor="0.1"), TypeError, "floor"),
        (lambda: sf.warmup_cosine(10.0), TypeError, "steps"),
        (lambda: sf.warmup_linear(10, warmup=True), TypeError, "warmup"),
    ],
)
def test_what_no_warm_up_is(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
