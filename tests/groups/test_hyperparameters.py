"""Settings of groups: which edits are noticed, which rates are taken over on sight, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.groups.hyperparameters import Hyperparameters, row_constants
from stackelberg_fused.native import change_detection


@pytest.fixture(params=["native", "python"], autouse=True)
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Groups are watched in C++ where there is a compiler, else in Python."""
    if request.param == "python":
        monkeypatch.setattr(change_detection, "NativeContainerSnapshot", None)
    elif change_detection.NativeContainerSnapshot is None:
        pytest.skip("_cpu is not built here")
    return request.param


def _groups(*rules: str, **settings: Any) -> list[dict[str, Any]]:
    """Completed param groups, as an optimizer makes them."""
    groups = [{"params": [nn.Parameter(torch.ones(1))], "rule": r, **settings} for r in rules]
    return sf.StackelbergAdamW(groups, lr=0.1, weight_decay=0.0, backend="reference").param_groups


def _accepted(groups: list[dict[str, Any]]) -> Hyperparameters:
    settings = Hyperparameters(groups)
    assert settings.check() == list(range(len(groups)))
    settings.accept(settings.check())
    return settings


def _edited(settings: Hyperparameters) -> list[int]:
    settings.look()
    return settings.check()


@pytest.mark.parametrize(
    "edit",
    [
        lambda g: g.update(lr=torch.tensor(0.5)),
        lambda g: g.update(lr=1),
        lambda g: g.update(betas=(0.5, 0.9)),
        lambda g: g.update(weight_decay=0.5),
        lambda g: g.update(maximize=True),
        lambda g: g.update(eps=1e-3),
        lambda g: g.update(amsgrad=True),
        lambda g: g.update(role="head"),
        lambda g: g.update(lr=0.5, eps=1e-3),
        lambda g: g.update(mine=3),
    ],
)
def test_edits_are_noticed_until_they_are_accepted(edit: Any) -> None:
    groups = _groups("adam", "adam")
    settings = _accepted(groups)
    assert _edited(settings) == []
    edit(groups[1])
    assert _edited(settings) == _edited(settings) == [1]
    settings.accept([1])
    assert settings.scalars["lr"][1] == float(groups[1]["lr"])
    closed = not isinstance(groups[1]["lr"], torch.Tensor)
    assert _edited(settings) == ([] if closed else [1])


@pytest.mark.parametrize(
    "edit",
    [
        lambda g: g["betas"].__setitem__(0, 0.5),
        lambda g: g["lr"].fill_(0.5),
        lambda g: g["weight_decay"].fill_(0.5),
    ],
)
def test_what_can_change_in_place_is_always_looked_at(edit: Any) -> None:
    groups = _groups("adam", "adam")
    groups[1].update(betas=[0.9, 0.99], lr=torch.tensor(0.1), weight_decay=torch.tensor(0.1))
    settings = _accepted(groups)
    before = settings.static[1].tobytes() + settings.scalars[1].tobytes()
    assert _edited(settings) == [1]
    edit(groups[1])
    settings.accept(_edited(settings))
    assert settings.static[1].tobytes() + settings.scalars[1].tobytes() != before


def test_a_new_rate_is_taken_over_on_sight() -> None:
    groups = _groups("adamw", "adamw", "sgd")
    settings = _accepted(groups)
    assert settings.new_rates([]) is None
    groups[0]["lr"], groups[2]["lr"] = 0.5, 0.25
    groups[1].update(lr=0.125, eps=1e-3)
    assert _edited(settings) == [1]
    assert settings.scalars["lr"].tolist() == [0.5, 0.1, 0.25]
    assert settings.new_rates([1]).tolist() == [0.5, 0.125, 0.25]
    assert [player.tolist() for player in settings.players] == [[True] * 3, [False] * 3]
    settings.accept([1])
    assert settings.scalars["lr"].tolist() == [0.5, 0.125, 0.25]
    assert _edited(settings) == []
    assert settings.new_rates([]) is None


@pytest.mark.parametrize("rate", [float("nan"), -1e39, 1e39, 10**400, "0.5", None])
def test_a_rate_that_is_none_is_refused_until_it_is_mended(rate: Any) -> None:
    groups = _groups("adamw", "adamw")
    settings = _accepted(groups)
    groups[1]["lr"] = rate
    settings.look()
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match=r"param group 1 .*lr"):
            settings.check()
    groups[1]["lr"] = 0.5
    settings.accept(_edited(settings))
    assert settings.scalars["lr"].tolist() == [0.1, 0.5]


@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps", "momentum", "dampening"])
@pytest.mark.parametrize("value", [-0.5, -1e-20, math.inf, -math.inf])
def test_signs_and_infinities_are_checked_in_new_groups_alone(name: str, value: float) -> None:
    groups = _groups("sgd" if name in ("momentum", "dampening") else "adamw")
    settings = _accepted(groups)
    groups[0][name] = value
    settings.accept(_edited(settings))
    if name != "dampening":
        p = nn.Parameter(torch.ones(1))
        with pytest.raises(ValueError, match=rf"param group 1 .*{name}"):
            sf.StackelbergAdamW([{"params": []}, {**groups[0], "params": [p]}])


@pytest.mark.parametrize("name", ["role", "rule", "lr", "eps"])
def test_a_setting_that_is_gone_is_named(name: str) -> None:
    groups = _groups("adamw", "adamw")
    settings = _accepted(groups)
    del groups[1][name]
    settings.look()
    with pytest.raises(ValueError, match=rf"param group 1 .*{name}"):
        settings.check()


class Odd(float):
    """Takes itself for another number."""

    def __float__(self) -> float:
        return 0.25


@pytest.mark.parametrize("rate", [np.float64(0.25), np.float32(0.25), Odd(0.5), Fraction(1, 4)])
def test_other_numbers_are_read_as_they_read_themselves(rate: Any) -> None:
    groups = _groups("adamw")
    settings = _accepted(groups)
    groups[0]["lr"] = rate
    settings.accept(_edited(settings))
    assert settings.scalars["lr"].tolist() == [0.25]
    assert _edited(settings) in ([], [0])


@pytest.mark.parametrize("name", ["lr", "weight_decay", "eps", "momentum", "dampening"])
def test_what_float32_cannot_hold_is_refused(name: str) -> None:
    groups = _groups("sgd" if name in ("momentum", "dampening") else "adamw")
    settings = _accepted(groups)
    groups[0][name] = 1e39
    settings.look()
    with pytest.raises(ValueError, match=rf"param group 0 .*{name}"):
        settings.check()


def test_groups_with_another_rule_than_before_are_told() -> None:
    groups = _groups("adam", "adam", "sgd")
    settings = _accepted(groups)
    groups[0]["eps"] = 1e-3
    groups[1]["amsgrad"] = True
    groups[2]["momentum"] = 0.5
    assert settings.accept(_edited(settings)) == ([1, 2], [])


def test_groups_that_begin_a_new_round_of_turns_are_told() -> None:
    groups = _groups("adam", "adam", "sgd")
    settings = _accepted(groups)
    groups[0]["weight_decay"] = 0.5
    groups[1]["update_every"] = 3
    groups[2]["update_every_grads"] = "mean"
    assert settings.accept(_edited(settings)) == ([0, 1, 2], [1, 2])
    groups[1]["amsgrad"] = True
    assert settings.accept(_edited(settings)) == ([1], [])
    groups[0]["ema_decay"] = 0.5
    assert settings.accept(_edited(settings)) == ([0], [])


def test_a_rate_that_nobody_can_read_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    ours = sf.StackelbergAdamW([p], lr=0.1, backend="cpu")
    p.grad = torch.ones(3)
    ours.param_groups[0]["lr"] = torch.tensor(0.1, device="meta")
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"param group 0 .*lr is on meta, its parameters on cpu"
        ):
            ours.step()
    assert p.tolist() == [1.0] * 3
    ours.param_groups[0]["lr"] = torch.tensor([0.1, 0.2], device="meta")
    with pytest.raises(ValueError, match="one element"):
        ours.step()
    ours.param_groups[0]["lr"] = torch.tensor(1, device="meta")
    with pytest.raises(TypeError, match="float32 or float64"):
        ours.step()


def test_minus_zero_decays_from_the_end_that_zero_does() -> None:
    """Kernels tell by the sign of the weight which end is the nearer one."""
    (group,) = _groups("adamw", betas=(-0.0, 0.9), ema_decay=-0.0)
    columns = ("lerp_weight", "ema_weight")
    for edited in (group, {**group, "betas": (0.0, 0.9), "ema_decay": 0.0}):
        weights = [row_constants(edited)[name] for name in columns]
        assert np.signbit(weights).all(), weights
