"""Objects where none of their kind belong: the error names the parameter or the group, and nothing has happened."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import set_gradients, step
from checks import Snapshot, assert_same_optimizers
from torch import nn

import stackelberg_fused as sf

BODY = r"param group 0 \(body\)"
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def _build(backend: str = "cpu", **settings: Any) -> Any:
    named = [("a", nn.Parameter(torch.ones(3))), ("b", nn.Parameter(torch.ones(4)))]
    groups = [{"params": named[:1]}, {"params": named[1:], "role": "head"}]
    return sf.StackelbergAdamW(groups, lr=0.1, backend=backend, **settings)


@pytest.mark.parametrize("value", [None, [], 3, torch.ones(3)], ids=repr)
@pytest.mark.parametrize("stepped", [False, True])
@BACKENDS
def test_state_that_is_no_dict(backend: str, stepped: bool, value: Any) -> None:
    ours, twin = _build(backend), _build(backend)
    if stepped:
        step(ours, twin)
    (param,) = ours.param_groups[0]["params"]
    old = ours.state.get(param)
    set_gradients(ours.param_groups, 1)
    ours.state[param] = value
    before = [p.detach().clone() for group in ours.param_groups for p in group["params"]]
    for _ in range(2):
        with pytest.raises(
            TypeError, match=rf"parameter 'a' of {BODY}: its state is .*expected a dict"
        ):
            ours.step()
    after = [p for group in ours.param_groups for p in group["params"]]
    assert all(map(torch.equal, before, after))
    if old is None:
        del ours.state[param]
    else:
        ours.state[param] = old
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


LISTS: dict[str, tuple[Any, str]] = {
    "a tensor": (lambda p: p, f"{BODY}: params must be a list of tensors, got torch.FloatTensor"),
    "a scalar": (lambda p: torch.tensor(1.0), f"{BODY}: params must be a list"),
    "a set": (lambda p: {p}, f"{BODY}: params must be a list of tensors, got set"),
    "none": (lambda p: None, f"{BODY}: params must be a list of tensors, got NoneType"),
    "a list with none": (lambda p: [p, None], f"parameter 1 of {BODY}: expected a tensor"),
    "an array": (lambda p: [np.ones(3)], f"parameter 'a' of {BODY}: expected a tensor"),
}


@pytest.mark.parametrize("name", LISTS)
@BACKENDS
def test_params_that_are_no_list_of_tensors(backend: str, name: str) -> None:
    make, match = LISTS[name]
    ours, twin = _build(backend), _build(backend)
    step(ours, twin)
    set_gradients(ours.param_groups, 1)
    before, group = Snapshot(ours), ours.param_groups[0]
    old = group["params"]
    group["params"] = make(old[0])
    for ask in (ours.step, ours.step, lambda: ours.backend):
        with pytest.raises(TypeError, match=match.replace("FloatTensor", r"\w+")):
            ask()
    group["params"] = old
    before.assert_unchanged()
    step(ours, twin, seed=2)
    assert_same_optimizers(ours, twin)


def test_groups_that_are_no_dicts_or_have_no_params() -> None:
    ours = _build()
    step(ours)
    group = ours.param_groups[0]
    ours.param_groups[0] = None
    with pytest.raises(TypeError, match="param group 0: expected a dict, got NoneType"):
        ours.step()
    ours.param_groups[0] = group
    del group["params"]
    with pytest.raises(TypeError, match=f"{BODY}: params must be a list"):
        ours.step()


ARRAYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "moment": lambda d: d["state"][0].update(exp_avg=d["state"][0]["exp_avg"].numpy()),
    "entry": lambda d: d["state"].update({0: np.ones(3)}),
    "none": lambda d: d["state"].update({0: None}),
    "steps": lambda d: d["state"][0].update(step=np.ones(2)),
    "lr": lambda d: d["param_groups"][0].update(lr=np.ones(2)),
    "role": lambda d: d["param_groups"][0].update(role=np.ones(2)),
    "rule": lambda d: d["param_groups"][0].update(rule=np.ones(2)),
    "turns": lambda d: d["param_groups"][0].update(update_every_grads=np.ones(2)),
    "constraint": lambda d: d["param_groups"][0].update(constraint=np.ones(2)),
    "flag": lambda d: d["param_groups"][0].update(amsgrad=np.ones(2)),
}


@pytest.mark.parametrize("name", ARRAYS)
@BACKENDS
def test_arrays_in_a_state_dict(backend: str, name: str) -> None:
    ours, twin = _build(backend), _build(backend)
    step(ours, twin)
    saved = copy.deepcopy(ours.state_dict())
    ARRAYS[name](saved)
    before = Snapshot(ours)
    label = "param group 0" if name in ("lr", "role", *list(ARRAYS)[6:]) else "parameter 'a'"
    with pytest.raises((TypeError, ValueError), match=label):
        ours.load_state_dict(saved)
    before.assert_unchanged()
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


def test_arrays_that_are_numbers_or_foreign_load() -> None:
    ours, twin = _build(), _build()
    step(ours, twin)
    saved = copy.deepcopy(ours.state_dict())
    saved["state"][0].update(step=np.array(1.0), mine=np.ones(3))
    ours.load_state_dict(saved)
    assert ours.state[ours.param_groups[0]["params"][0]]["mine"].tolist() == [1.0] * 3
    step(ours, twin, seed=1)
    for group, other in zip(ours.param_groups, twin.param_groups, strict=True):
        assert all(map(torch.equal, group["params"], other["params"]))


@pytest.mark.parametrize(
    "name",
    ["maximize", "amsgrad", "capturable", "decoupled_weight_decay", "role", "rule"],
)
def test_settings_without_a_truth_value(name: str) -> None:
    for value in (np.ones(2), torch.ones(2)):
        ours = _build()
        step(ours)
        ours.param_groups[0][name] = value
        with pytest.raises((TypeError, ValueError), match=r"param group 0.*" + name):
            ours.step()
        if name in ("maximize", "amsgrad"):
            with pytest.raises(TypeError, match=rf"{BODY}: {name} must be a bool"):
                _build(**{name: value})


@pytest.mark.parametrize(
    "backend",
    [None, 3, object(), sf.StackelbergSGD, b"cpu"],
    ids=["none", "number", "object", "class", "bytes"],
)
def test_a_backend_that_is_none(backend: Any) -> None:
    with pytest.raises(TypeError, match=r"backend must be a name, one of 'auto', .* got"):
        _build(backend)
