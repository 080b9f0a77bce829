"""Groups of LoRA+ and of muP, beside what the rules say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from small_models import GPT
from torch import nn

import stackelberg_fused as sf


class Adapted(nn.Module):
    """A layer with an adapter, named as PEFT names it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(6, 6)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 6, bias=False)})
        self.base_layer.requires_grad_(False)


def _adapted() -> nn.Module:
    return nn.ModuleDict({"q": Adapted(), "v": Adapted(), "score": nn.Linear(6, 2)})


def test_lora_plus() -> None:
    groups = sf.lora_plus_groups(_adapted(), lr=1e-3)
    assert [group["lr"] for group in groups] == [1e-3, 16e-3]
    slow, fast = ([name for name, _ in group["params"]] for group in groups)
    assert fast == ["q.lora_B.default.weight", "v.lora_B.default.weight"]
    assert slow == [
        "q.lora_A.default.weight",
        "v.lora_A.default.weight",
        "score.weight",
        "score.bias",
    ]
    assert [group["role"] for group in groups] == ["body", "head"]
    assert not any("weight_decay" in group for group in groups)
    ours = sf.StackelbergAdamW(groups, weight_decay=0.1)
    assert [group["weight_decay"] for group in ours.param_groups] == [0.1, 0.1]
    assert ours.param_groups[1]["lr"] == 16e-3
    groups = sf.lora_plus_groups(_adapted(), lr=1e-3, ratio=4.0, weight_decay=0.2)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.2), (4e-3, 0.2)]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: nn.Linear(3, 3), {}, "no parameter that is trained has 'lora_B' in its name"),
        (lambda: _adapted().requires_grad_(False), {}, "no parameter that is trained"),
        (_adapted, {"ratio": 0.5}, "ratio must be >= 1"),
        (_adapted, {"lr": -1e-3}, "lr must be >= 0"),
        (_adapted, {"weight_decay": -0.1}, "weight_decay must be >= 0"),
    ],
)
def test_lora_plus_refused(make: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.lora_plus_groups(make(), **{"lr": 1e-3, **options})


def _rates(groups: list[dict[str, Any]]) -> dict[str, float]:
    return {name: group["lr"] for group in groups for name, _ in group["params"]}


def test_mup_for_adam() -> None:
    """Matrices from wide to wide divide their rate by how much wider what comes in is; all else keeps it."""
    wide, base = GPT(tied=False, width=32), GPT(tied=False, width=8)
    rates = _rates(sf.mup_groups(wide, base, lr=1.0))
    for name, rate in rates.items():
        is_hidden = name.endswith(("up.weight", "down.weight"))
        assert rate == (0.25 if is_hidden else 1.0), name
    sf.StackelbergAdamW(sf.mup_groups(wide, base, lr=1.0))
    with torch.device("meta"):
        again = GPT(tied=False, width=8)
    assert _rates(sf.mup_groups(wide, again, lr=1.0)) == rates


def test_mup_for_sgd() -> None:
    wide, base = GPT(tied=False, width=32), GPT(tied=False, width=8)
    for name, rate in _rates(sf.mup_groups(wide, base, lr=1.0, rule="sgd")).items():
        assert rate == (1.0 if name.endswith(("up.weight", "down.weight")) else 4.0), name
    narrow, wider = nn.Linear(8, 8), nn.Linear(16, 64)
    rates = _rates(sf.mup_groups(wider, narrow, lr=1.0, rule="sgd"))
    assert rates == {"weight": 4.0, "bias": 8.0}


def test_mup_keeps_what_a_step_takes_off() -> None:
    wide, base = GPT(tied=False, width=32), GPT(tied=False, width=8)
    for rule in ("adam", "sgd"):
        for group in sf.mup_groups(wide, base, lr=0.5, weight_decay=0.1, rule=rule):
            assert math.isclose(group["lr"] * group["weight_decay"], 0.05)


def test_mup_of_the_same_size_is_one_rate() -> None:
    (group,) = sf.mup_groups(GPT(), GPT(), lr=0.1)
    assert group["lr"] == 0.1


@pytest.mark.parametrize(
    ("model", "base", "options", "message"),
    [
        (GPT(), None, {}, "'transformer.wte.weight' has no base shape: pass base="),
        (GPT(blocks=3), GPT(blocks=2), {}, "is not in the base"),
        (GPT(blocks=2), GPT(blocks=3), {}, "is not in the model"),
        (nn.Conv2d(4, 4, 3), nn.Conv2d(2, 2, 1), {}, "more than two of its dimensions"),
        (
            nn.Conv2d(4, 4, 3),
            nn.Conv1d(2, 2, 3),
            {},
            "'weight' has 4 dimensions, and 3 in the base",
        ),
        (GPT(), GPT(), {"rule": "lion"}, "rule must be 'adam' or 'sgd'"),
    ],
)
def test_mup_refused(model: Any, base: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.mup_groups(model, base, lr=0.1, **options)


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_mup_as_the_mup_library(rule: str) -> None:
    mup = pytest.importorskip("mup")

    def make(width: int) -> nn.Module:
        return GPT(tied=False, width=width)

    wide = make(32)
    mup.set_base_shapes(wide, make(8), delta=make(16), rescale_params=False, do_assert=False)
    names = {id(p): name for name, p in wide.named_parameters()}
    given = {"lr": 0.1, "weight_decay": 0.01}
    theirs = (mup.MuAdam if rule == "adam" else mup.MuSGD)(list(wide.parameters()), **given)
    expected = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in theirs.param_groups
        for p in group["params"]
    }
    for base in (None, make(8)):
        ours = sf.mup_groups(wide, base, rule=rule, **given)
        found = {n: (g["lr"], g["weight_decay"]) for g in ours for n, _ in g["params"]}
        assert found.keys() == expected.keys()
        for name, values in found.items():
            assert values == pytest.approx(expected[name]), name
