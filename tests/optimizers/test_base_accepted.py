"""What torch's optimizers take, and so do ours: sequences, mappings, empty groups, rates that end below zero."""

from __future__ import annotations

import collections
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from cases import OURS, TORCHS, normal, set_gradients, step, two_params
from checks import all_params, assert_agree, assert_same_optimizers
from torch import nn
from torch.optim import lr_scheduler

import stackelberg_fused as sf

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
PAIRS: dict[str, Any] = {
    "list": [0.5, 0.9],
    "UserList": collections.UserList([0.5, 0.9]),
    "deque": collections.deque([0.5, 0.9]),
    "array": np.array([0.5, 0.9]),
    "tensor": torch.tensor([0.5, 0.9]),
}


@BACKENDS
@pytest.mark.parametrize("in_group", [False, True], ids=["argument", "group"])
@pytest.mark.parametrize("name", PAIRS)
def test_betas_of_any_sequence(name: str, in_group: bool, backend: str) -> None:
    if in_group and name == "tensor":
        pytest.skip("torch cannot step with it")
    given = {"betas": PAIRS[name]}
    sides = []
    for cls, more in ((sf.StackelbergAdam, {"backend": backend}), (torch.optim.Adam, {})):
        group = {"params": two_params(), **(given if in_group else {})}
        sides.append(cls([group], lr=0.1, **({} if in_group else given), **more))
    ours, torchs = sides
    # the constructor makes it a tuple, as newer versions of torch do; a group keeps its own
    kept, torchs_kept = (side.param_groups[0]["betas"] for side in sides)
    assert type(kept) is (type(torchs_kept) if in_group else tuple)
    for seed in range(3):
        step(ours, torchs, seed=seed)
    assert_agree(ours, torchs)


@pytest.mark.parametrize("mapping", [types.MappingProxyType, collections.UserDict])
def test_settings_by_role_of_any_mapping(mapping: Any) -> None:
    def build(by_role: Any) -> Any:
        body, head = two_params()
        return sf.StackelbergAdamW(
            [{"params": [body]}, {"params": [head], "role": "head"}],
            lr=0.1,
            update_every=by_role({"body": 2}),
            ema_decay=by_role({"head": 0.5}),
            constraint=by_role({"head": sf.Box(-0.1, 0.1)}),
            max_grad_norm=by_role({"body": 0.5}),
        )

    ours, expected = build(mapping), build(dict)
    assert ours.max_grad_norm == {"body": 0.5}
    assert [g["update_every"] for g in ours.param_groups] == [2, 1]
    for seed in range(3):
        step(ours, expected, seed=seed)
    assert_same_optimizers(ours, expected)
    with pytest.raises(ValueError, match="unknown role 'tail'"):
        build(lambda settings: mapping({**settings, "tail": 1}))


@BACKENDS
@pytest.mark.parametrize("rule", OURS)
@pytest.mark.parametrize("empty", [["body"], ["head"], ["body", "head"]], ids=str)
def test_a_rank_without_a_player(empty: list[str], rule: str, backend: str) -> None:
    """As where a pipeline's stages lie on other ranks: the optimizer is built and stepped there, too."""

    def groups() -> list[dict[str, Any]]:
        params = dict(zip(("body", "head"), two_params(), strict=True))
        return [{"params": [] if r in empty else [p], "role": r} for r, p in params.items()]

    ours = OURS[rule](groups(), lr=0.1, head_lr_ratio=1.0, backend=backend, max_grad_norm=1e9)
    torchs = TORCHS[rule](groups(), lr=0.1)
    for seed in range(3):
        step(ours, torchs, seed=seed)
    for role in ("body", "head"):
        ours.zero_grad(role=role)
        ours.step(role=role)
    step(ours, torchs, seed=3)
    ours.load_state_dict(ours.state_dict())
    ours.add_param_group({"params": [], "role": "head"})
    step(ours, torchs, seed=4)
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("settings", [{"constraint": sf.L2Ball(1.0)}, {"grads": "flat"}], ids=str)
def test_empty_groups_with_other_options(settings: dict[str, Any]) -> None:
    body = nn.Parameter(normal(3, 1))
    ours = sf.StackelbergAdamW(
        [{"params": [body]}, {"params": [], "role": "head"}], update_every=2, **settings
    )
    body.sum().backward()
    ours.step()
    if "grads" in settings:
        assert ours.flat_grads.keys() == {"body", "head"}


@BACKENDS
@pytest.mark.parametrize("start", [1.0, 1 / 3, 0.1])
@pytest.mark.parametrize("total", range(2, 12))
def test_a_rate_that_rounding_leaves_below_zero(start: float, total: int, backend: str) -> None:
    """No warning either, of a body that is faster than the head by less than rounding."""
    sides = []
    for cls, more in (
        (sf.StackelbergAdamW, {"backend": backend, "head_lr_ratio": 10.0}),
        (torch.optim.AdamW, {}),
    ):
        body, head = two_params()
        head_group = {"params": [head], "lr": 0.1 * 10.0, "role": "head"}
        sides.append(cls([{"params": [body]}, head_group], lr=0.1, **more))
    ours, torchs = sides
    schedules = [lr_scheduler.LinearLR(side, start, 0.0, total) for side in sides]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(total + 2):
            step(ours, torchs, seed=seed)
            for schedule in schedules:
                schedule.step()
    assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in torchs.param_groups]
    assert_agree(ours, torchs)
    again = OURS["adamw"]([{"params": [p]} for p in two_params()])
    again.load_state_dict(ours.state_dict())
    set_gradients(again.param_groups, 0)
    again.step()
