"""State dicts that are no state dicts: refused as torch does, and what there was is kept."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from cases import OURS, TORCHS, normal, step, two_params
from checks import Snapshot, assert_same_optimizers
from torch import nn

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
TURNS = {"update_every": 3, "update_every_grads": "mean"}


@pytest.mark.parametrize("missing", ["state", "param_groups"])
@pytest.mark.parametrize("rule", OURS)
@BACKENDS
def test_a_part_that_is_missing(backend: str, rule: str, missing: str) -> None:
    ours, twin = (OURS[rule](two_params(), lr=0.1, backend=backend) for _ in range(2))
    torchs = TORCHS[rule](two_params(), lr=0.1)
    step(ours, twin, torchs)
    for optimizer in (ours, torchs):
        saved = optimizer.state_dict()
        del saved[missing]
        before = Snapshot(ours)
        with pytest.raises(KeyError, match=missing):
            optimizer.load_state_dict(saved)
        before.assert_unchanged()
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


@pytest.mark.parametrize("name", ["step", "waited"])
@pytest.mark.parametrize(
    "count",
    [
        2.0**53,
        2**53 - 1,
        1e39,
        10**400,
        np.float64(1e300),
        torch.tensor(1e39, dtype=torch.float64),
        2**63,
    ],
    ids=str,
)
@BACKENDS
def test_counts_that_nothing_counts_on_from(backend: str, count: Any, name: str) -> None:
    ours, twin = (OURS["adamw"](two_params(), lr=0.1, backend=backend, **TURNS) for _ in range(2))
    step(ours, twin)
    saved = copy.deepcopy(ours.state_dict())
    saved["state"][1][name] = count
    before = Snapshot(ours)
    with pytest.raises(ValueError, match=rf"parameter 1 of param group 0 .*state dict has {name}"):
        ours.load_state_dict(saved)
    before.assert_unchanged()
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


@BACKENDS
def test_a_warning_that_is_an_error_comes_before_anything_is_loaded(backend: str) -> None:
    groups = [
        [{"params": p[:1]}, {"params": p[1:], "role": "head"}] for p in (two_params(), two_params())
    ]
    ours = OURS["adamw"](groups[0], lr=0.1, head_lr_ratio=3.0, backend=backend)
    other = OURS["adamw"](groups[1], lr=0.1, head_lr_ratio=3.0, backend=backend)
    for seed in range(3):
        step(other, seed=seed)
    step(ours, seed=5)
    saved = copy.deepcopy(other.state_dict())
    saved["param_groups"][1]["lr"] = 0.1
    before = Snapshot(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="share one learning rate"):
            ours.load_state_dict(saved)
    before.assert_unchanged()


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "ema"])
@BACKENDS
def test_state_without_elements(backend: str, name: str) -> None:
    ours, twin = (OURS["adamw"](two_params(), lr=0.1, ema_decay=0.5, backend=backend) for _ in "ab")
    step(ours, twin)
    saved = copy.deepcopy(ours.state_dict())
    for value in saved["state"][0].values():
        value.zero_()
    saved["state"][1][name] = saved["state"][1][name].to("meta")
    before = Snapshot(ours)
    with pytest.raises(ValueError, match=f"parameter 1 of param group 0 .*{name} has no memory"):
        ours.load_state_dict(saved)
    before.assert_unchanged()
    own = ours.state[ours.param_groups[0]["params"][1]]
    own[name], kept = own[name].to("meta"), own[name]
    with pytest.raises(ValueError, match=f"parameter 1 of param group 0 .*{name} has no memory"):
        ours.step()
    own[name] = kept
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


@pytest.mark.parametrize("how", ["loaded", "put there"])
@pytest.mark.parametrize("name", ["step", "waited", "exp_avg", "exp_avg_sq", "grad_sum", "ema"])
@BACKENDS
def test_state_without_memory(backend: str, name: str, how: str) -> None:
    """As a checkpoint of a model that was made on the meta device has it."""
    settings = {"lr": 0.1, "backend": backend, "ema_decay": 0.9, **TURNS}
    ours, twin = (OURS["adamw"](two_params(), **settings) for _ in range(2))
    step(ours, twin)
    saved = copy.deepcopy(ours.state_dict())
    saved["state"][1][name] = saved["state"][1][name].to("meta")
    param = ours.param_groups[0]["params"][1]
    kept = ours.state[param][name]
    before = Snapshot(ours)
    call = partial(ours.load_state_dict, saved)
    if how == "put there":
        ours.state[param][name] = saved["state"][1][name]
        call = ours.step
    with pytest.raises(ValueError, match=rf"parameter 1 of param group 0 .*{name}"):
        call()
    ours.state[param][name] = kept
    before.assert_unchanged()
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


@BACKENDS
def test_state_that_changes_places(backend: str) -> None:
    """`state_dict()` holds the state itself: what is copied first must not be what is read next."""
    ours = OURS["adamw"]([nn.Parameter(normal(3, n)) for n in range(2)], lr=0.1, backend=backend)
    step(ours)
    saved = ours.state_dict()
    first, second = (copy.deepcopy(saved["state"][i]) for i in range(2))
    saved["state"][0], saved["state"][1] = saved["state"][1], saved["state"][0]
    ours.load_state_dict(saved)
    now = [ours.state[p] for p in ours.param_groups[0]["params"]]
    for entry, expected in zip(now, (second, first), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(entry[name], expected[name])
