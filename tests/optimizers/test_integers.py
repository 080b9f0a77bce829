"""Integers of NumPy, and arrays and tensors of one, as settings: what they are, wherever they come from."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from cases import normal, step
from checks import assert_same_optimizers
from torch import nn

import stackelberg_fused as sf

KINDS: dict[str, Any] = {
    "int64": np.int64,
    "int8": np.int8,
    "uint32": np.uint32,
    "array": np.array,
    "tensor": torch.tensor,
    "tensor of one": lambda value: torch.tensor([value]),
}
by_kind = pytest.mark.parametrize("kind", KINDS)
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
NUMBERS = {"update_every": 2, "seed": 7}


def _build(backend: str = "cpu", in_group: bool = False, **settings: Any) -> Any:
    params = [nn.Parameter(normal(n, n).bfloat16()) for n in (3, 70)]
    group = {"params": params, **(settings if in_group else {})}
    return sf.StackelbergAdamW(
        [group],
        lr=0.1,
        backend=backend,
        master="stochastic",
        update_every_grads="mean",
        **({} if in_group else settings),
    )


def _train(*optimizers: Any) -> None:
    for seed in range(5):
        step(*optimizers, seed=seed)


@pytest.mark.parametrize("in_group", [False, True], ids=["argument", "group"])
@by_kind
@BACKENDS
def test_given(backend: str, kind: str, in_group: bool) -> None:
    ours = _build(backend, in_group, **{n: KINDS[kind](v) for n, v in NUMBERS.items()})
    expected = _build(backend, **NUMBERS)
    for name in NUMBERS:
        assert type(ours.param_groups[0][name]) is int
    _train(ours, expected)
    assert_same_optimizers(ours, expected)


def test_by_role_and_in_an_added_group() -> None:
    ours = _build(update_every={"body": np.int64(2)})
    assert type(ours.param_groups[0]["update_every"]) is int
    ours.add_param_group({"params": [nn.Parameter(torch.ones(2))], "update_every": np.int16(3)})
    assert [group["update_every"] for group in ours.param_groups] == [2, 3]
    assert type(ours.param_groups[1]["update_every"]) is int


@by_kind
@BACKENDS
def test_edited(backend: str, kind: str) -> None:
    ours, expected = _build(backend), _build(backend)
    for optimizer, make in ((ours, KINDS[kind]), (expected, int)):
        step(optimizer)
        optimizer.param_groups[0].update({n: make(v) for n, v in NUMBERS.items()})
    _train(ours, expected)
    assert_same_optimizers(ours, expected)
    saved = io.BytesIO()
    torch.save(ours.state_dict(), saved)
    saved.seek(0)
    plain = torch.load(saved, weights_only=True)
    assert {n: plain["param_groups"][0][n] for n in NUMBERS} == NUMBERS


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_filled_in_place(kind: str) -> None:
    ours, expected = _build(), _build()
    every = KINDS[kind](2)
    for optimizer, value in ((ours, every), (expected, 2)):
        optimizer.param_groups[0]["update_every"] = value
        for seed in range(3):
            step(optimizer, seed=seed)
    every[...] = 3
    expected.param_groups[0]["update_every"] = 3
    _train(ours, expected)
    assert_same_optimizers(ours, expected)


@by_kind
def test_loaded(kind: str) -> None:
    expected = _build(**NUMBERS)
    _train(expected)
    saved = copy.deepcopy(expected.state_dict())
    for name, value in NUMBERS.items():
        saved["param_groups"][0][name] = KINDS[kind](value)
    for entry in saved["state"].values():
        for name in ("step", "waited"):
            entry[name] = KINDS[kind](int(entry[name]))
    ours = _build()
    ours.load_state_dict(saved)
    for p, q in zip(
        ours.param_groups[0]["params"], expected.param_groups[0]["params"], strict=True
    ):
        p.data.copy_(q.data)
    for name in NUMBERS:
        assert type(ours.param_groups[0][name]) is int
    _train(ours, expected)
    assert_same_optimizers(ours, expected)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [
        2.0,
        np.float64(2.0),
        np.array(2.0),
        torch.tensor(2.0),
        True,
        np.True_,
        torch.tensor(True),
        "2",
    ],
    ids=repr,
)
def test_other_numbers_are_refused(name: str, value: Any) -> None:
    ours = _build()
    with pytest.raises(TypeError, match=rf"param group 0 \(body\): {name} must be an int"):
        _build(**{name: value})
    ours.param_groups[0][name] = value
    with pytest.raises(TypeError, match=rf"param group 0 \(body\): {name} must be an int"):
        step(ours)
    for several in (np.array([2, 3]), torch.tensor([2, 3])):
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            _build(**{name: several})


@pytest.mark.parametrize(
    "make", [np.float32, np.int64, np.array, torch.tensor], ids=lambda make: make.__name__
)
def test_numbers_of_constraints_and_limits(make: Any) -> None:
    assert sf.Box(make(-1), make(2)) == sf.Box(-1.0, 2.0)
    assert sf.L2Ball(make(2)) == sf.L2Ball(2.0)
    assert sf.Simplex(make(2)).total == 2.0
    ours, expected = _build(max_grad_norm=make(1)), _build(max_grad_norm=1.0)
    _train(ours, expected)
    assert_same_optimizers(ours, expected)
    for bad in (make, [1.0], np.ones(2), torch.ones(2), True):
        with pytest.raises(TypeError, match="Box: low must be a number"):
            sf.Box(bad)


def test_infinite_limits() -> None:
    for limit in (np.float32("inf"), torch.tensor(float("inf"))):
        ours = _build(max_grad_norm=limit)
        step(ours)
        assert float(ours.last_step.clip_factor["body"]) == 1.0
    with pytest.raises(ValueError, match="one element"):
        _build(max_grad_norm=torch.ones(2))
