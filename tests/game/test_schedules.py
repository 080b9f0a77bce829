"""Schedules of the two-time-scale game: values, composition with torch's schedulers, checkpoints, warnings."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, SequentialLR

import stackelberg_fused as sf


def _optimizer(ratio: float = 10.0, lr: float = 0.1) -> Any:
    groups = [
        {"params": [nn.Parameter(torch.ones(3))]},
        {"params": [nn.Parameter(torch.ones(3))], "lr": lr / 2},
        {"params": [nn.Parameter(torch.ones(3))], "role": "head"},
    ]
    return sf.StackelbergSGD(groups, lr=lr, head_lr_ratio=ratio)


def _rates(optimizer: Any, scheduler: Any, steps: int) -> list[list[float]]:
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        for group in optimizer.param_groups:
            group["params"][0].grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("exponents", [(1.0, 2 / 3), (0.6, 0.4), (0.5, 0.0)])
def test_powers_of_time(exponents: tuple[float, float]) -> None:
    ours = _optimizer()
    scheduler = sf.TwoTimeScaleLR(ours, *exponents, offset=4.0)
    for k, found in enumerate(_rates(ours, scheduler, 30)):
        body, head = ((1 + k / 4.0) ** -exponent for exponent in exponents)
        assert found == pytest.approx([0.1 * body, 0.05 * body, head])
        assert scheduler.get_last_lr() != found


def test_the_ratio_is_annealed() -> None:
    ours = _optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # rates that become equal are meant to
        rates = _rates(ours, sf.AnnealedRatioLR(ours, 10), 14)
    for k, (first, second, head) in enumerate(rates):
        assert (first, second) == (0.1, 0.05)
        assert head == pytest.approx(0.1 * 10 ** max(0.0, 1 - k / 10))


def test_to_another_ratio_than_one() -> None:
    ours = _optimizer()
    rates = _rates(ours, sf.AnnealedRatioLR(ours, 5, final_ratio=2.0), 7)
    assert rates[-1][2] == pytest.approx(0.2)


def test_behind_a_warm_up() -> None:
    ours = _optimizer()
    warm_up = LinearLR(ours, 0.25, total_iters=3)
    scheduler = SequentialLR(ours, [warm_up, sf.TwoTimeScaleLR(ours, offset=5.0)], [3])
    rates = _rates(ours, scheduler, 9)
    assert [r[0] for r in rates[:4]] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    for k, found in enumerate(rates[3:]):
        assert found[0] == pytest.approx(0.1 / (1 + k / 5))
        assert found[2] == pytest.approx((1 + k / 5) ** (-2 / 3))


def test_chained_with_each_other_and_with_a_warm_up() -> None:
    ours = _optimizer()
    scheduler = ChainedScheduler(
        [
            LinearLR(ours, 0.5, total_iters=4),
            sf.TwoTimeScaleLR(ours, offset=5.0),
            sf.AnnealedRatioLR(ours, 8, final_ratio=2.0),
        ]
    )
    for k, found in enumerate(_rates(ours, scheduler, 12)):
        warm = min(1.0, 0.5 + k / 8)
        assert found[0] == pytest.approx(0.1 * warm / (1 + k / 5))
        annealed = 0.2 ** min(k / 8, 1)
        assert found[2] == pytest.approx(warm * (1 + k / 5) ** (-2 / 3) * annealed)


@pytest.mark.parametrize("make", [sf.TwoTimeScaleLR, lambda o: sf.AnnealedRatioLR(o, 20)])
def test_checkpoints(make: Any) -> None:
    ours, again = _optimizer(), _optimizer()
    scheduler = make(ours)
    _rates(ours, scheduler, 5)
    other = make(again)
    again.load_state_dict(ours.state_dict())
    other.load_state_dict(scheduler.state_dict())
    assert _rates(again, other, 5) == _rates(ours, scheduler, 5)


def test_one_player() -> None:
    ours = _optimizer()
    scheduler = sf.TwoTimeScaleLR(ours.player("head"), offset=1.0)
    rates = _rates(ours, scheduler, 3)
    assert rates[2] == pytest.approx([0.1, 0.05, 3 ** (-2 / 3)])


def test_any_optimizer_whose_groups_have_roles() -> None:
    ours = torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.ones(3))], "role": "body"},
            {"params": [nn.Parameter(torch.ones(3))], "role": "head"},
        ],
        lr=0.1,
    )
    rates = _rates(ours, sf.TwoTimeScaleLR(ours, offset=1.0), 2)
    assert rates[1] == pytest.approx([0.05, 0.1 * 2 ** (-2 / 3)])


def test_rates_in_tensors() -> None:
    ours = _optimizer()
    ours.param_groups[2]["lr"] = torch.tensor(1.0)
    _rates(ours, sf.TwoTimeScaleLR(ours, offset=1.0), 3)
    assert float(ours.param_groups[2]["lr"]) == pytest.approx(4 ** (-2 / 3))


def test_who_becomes_the_faster_player() -> None:
    """The warning comes at construction if the exponents imply it, else in the step that reverses the order."""
    with pytest.warns(UserWarning, match=r"above it from step 999 on.*slow player") as caught:
        sf.TwoTimeScaleLR(_optimizer(), 0.0, 1.0, offset=111.0)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    ours = _optimizer()
    scheduler = sf.AnnealedRatioLR(ours, 4, final_ratio=0.5)
    with pytest.warns(UserWarning, match="after 4 steps the body's learning rate") as caught:
        _rates(ours, scheduler, 6)
    assert len([w for w in caught if "AnnealedRatioLR" in str(w.message)]) == 1


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda o: sf.TwoTimeScaleLR(o, body_exponent=-1), ValueError, "body_exponent"),
        (lambda o: sf.TwoTimeScaleLR(o, head_exponent=1.5), ValueError, "head_exponent"),
        (lambda o: sf.TwoTimeScaleLR(o, head_exponent="1"), TypeError, "head_exponent"),
        (lambda o: sf.TwoTimeScaleLR(o, offset=0), ValueError, "offset"),
        (lambda o: sf.TwoTimeScaleLR(o, offset=float("nan")), ValueError, "offset"),
        (lambda o: sf.AnnealedRatioLR(o, 0), ValueError, "steps"),
        (lambda o: sf.AnnealedRatioLR(o, 5, 0.0), ValueError, "final_ratio"),
        (lambda o: sf.AnnealedRatioLR(o.player("head"), 5), ValueError, "both roles"),
        (
            lambda o: sf.TwoTimeScaleLR(torch.optim.SGD([torch.ones(1, requires_grad=True)])),
            ValueError,
            "needs a role",
        ),
    ],
)
def test_what_is_refused(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make(_optimizer())


@pytest.mark.parametrize("lr", [1e-3, 3e-3, 0.1])
@pytest.mark.parametrize("ratio", [3.0, 7.0, 10.0])
def test_rates_that_end_equal_are_not_warned_of(ratio: float, lr: float) -> None:
    """The product of all factors may be rounded in either direction."""
    for steps in (7, 100, 333):
        ours = _optimizer(ratio, lr)
        ours.param_groups[1]["lr"] = lr
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rates = _rates(ours, sf.AnnealedRatioLR(ours, steps), steps + 3)
        assert rates[-1][2] == pytest.approx(lr)
