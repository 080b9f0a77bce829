"""Refusals while training: the error names the parameter or group, and nothing at all has happened.

"Nothing" is strict: parameters, state and step counts to the bit, and once the cause is gone the optimizer goes on
exactly as one that never met it. Refusals at construction are in test_base_bad_construction.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import normal, set_gradients, step
from checks import Snapshot, all_params, assert_same_optimizers
from torch import Tensor, nn

import stackelberg_fused as sf

Undo = Callable[[], None]
SHAPES = {"embed": (6, 4), "bias": (4,), "out": (5, 4), "scale": ()}


def _build(backend: str) -> Any:
    """A body (a float32 and a float64 parameter, hence two tables), a momentum group, and a head."""
    params = {n: nn.Parameter(normal(s, len(n))) for n, s in SHAPES.items()}
    double = nn.Parameter(normal(3, 9).double())
    groups = [
        {"params": [("embed", params["embed"]), ("bias", params["bias"])]},
        {"params": [("scale", params["scale"])], "rule": "sgd", "momentum": 0.9, "dampening": 0.5},
        {"params": [("out", params["out"]), ("double", double)], "role": "head"},
    ]
    optimizer = sf.StackelbergAdamW(groups, lr=0.1, backend=backend)
    step(optimizer)
    return optimizer


def _param(optimizer: Any, name: str) -> Tensor:
    for group in optimizer.param_groups:
        if name in group["param_names"]:
            return group["params"][group["param_names"].index(name)]
    raise KeyError(name)


def _setting(index: int, **values: Any) -> Callable[[Any], Undo]:
    def edit(optimizer: Any) -> Undo:
        group = optimizer.param_groups[index]
        old = dict(group)
        group.update(values)
        return lambda: group.update(old)

    return edit


def _without(index: int, name: str) -> Callable[[Any], Undo]:
    def edit(optimizer: Any) -> Undo:
        old = optimizer.param_groups[index].pop(name)
        return lambda: optimizer.param_groups[index].update({name: old})

    return edit


def _grad(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Any], Undo]:
    def edit(optimizer: Any) -> Undo:
        p = _param(optimizer, name)
        good = p.grad
        p.grad_dtype = None  # as a user would who wants gradients of another kind
        p.grad = None
        try:
            p.grad = make(good)
        except RuntimeError:  # torch refuses to assign it, but .data takes it
            p.grad = good.clone()
            p.grad.data = make(good)

        def undo() -> None:
            p.grad = good

        return undo

    return edit


def _data(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Any], Undo]:
    def edit(optimizer: Any) -> Undo:
        p = _param(optimizer, name)
        good, grad = p.data, p.grad
        p.grad = None
        p.data = make(good)

        def undo() -> None:
            p.grad = None
            p.data = good
            p.grad = grad

        return undo

    return edit


def _state(name: str, key: str, value: Any) -> Callable[[Any], Undo]:
    def edit(optimizer: Any) -> Undo:
        entry = optimizer.state[_param(optimizer, name)]
        old = entry[key]
        if value is None:
            del entry[key]
        else:
            entry[key] = value
        return lambda: entry.update({key: old})

    return edit


BODY, SGD, HEAD = "param group 0 \\(body\\)", "param group 1 \\(body\\)", "param group 2 \\(head\\)"
# fmt: off
EDITS: dict[str, tuple[Callable[[Any], Undo], type[Exception], str]] = {
    "lr too large": (_setting(0, lr=-1e39), ValueError, f"{BODY}: invalid lr -1e\\+39"),
    "lr nan": (_setting(2, lr=math.nan), ValueError, f"{HEAD}: invalid lr nan"),
    "lr of two elements": (_setting(2, lr=torch.ones(2)), ValueError, f"{HEAD}: lr must have one element"),
    "lr a string": (_setting(0, lr="1e-3"), TypeError, f"{BODY}: lr must be a number, got '1e-3'"),
    "lr none": (_setting(0, lr=None), TypeError, f"{BODY}: lr must be a number"),
    "eps nan": (_setting(0, eps=math.nan), ValueError, f"{BODY}: invalid eps"),
    "beta one": (_setting(2, betas=(0.9, 1.0)), ValueError, f"{HEAD}: invalid betas\\[1\\] 1.0"),
    "beta negative": (_setting(2, betas=(-0.1, 0.9)), ValueError, f"{HEAD}: invalid betas\\[0\\]"),
    "beta nan": (_setting(2, betas=(math.nan, 0.9)), ValueError, f"{HEAD}: invalid betas\\[0\\]"),
    "mixed betas": (_setting(0, betas=(torch.tensor(0.9), 0.9)), ValueError, f"{BODY}: betas must be"),
    "three betas": (_setting(0, betas=(0.9, 0.9, 0.9)), ValueError, f"{BODY}: betas must be a pair"),
    "weight decay nan": (_setting(1, weight_decay=math.nan), ValueError, f"{SGD}: invalid weight_decay"),
    "momentum nan": (_setting(1, momentum=math.nan), ValueError, f"{SGD}: invalid momentum"),
    "dampening nan": (_setting(1, dampening=math.nan), ValueError, f"{SGD}: invalid dampening"),
    "cautious sgd": (_setting(1, cautious=True), ValueError, f"{SGD}: cautious goes with rule 'adamw' only"),
    "cautious a number": (_setting(0, cautious=1), TypeError, f"{BODY}: cautious must be a bool, got 1"),
    "unknown role": (_setting(1, role="tail"), ValueError, "param group 1 .*unknown role"),
    "unknown rule": (_setting(1, rule="lion"), ValueError, f"{SGD}: unknown rule 'lion'"),
    "missing setting": (_without(1, "momentum"), ValueError, f"{SGD}.*momentum"),
    "gradient sparse": (_grad("embed", lambda g: g.to_sparse()), RuntimeError, f"'embed' of {BODY}: sparse"),
    "gradient complex": (_grad("out", lambda g: torch.complex(g, g)), TypeError, f"'out' of {HEAD}: complex"),
    "gradient dtype": (_grad("out", lambda g: g.double()), TypeError, f"'out' of {HEAD}: gradient has dtype"),
    "gradient dtype of the second table": (_grad("double", lambda g: g.float()), TypeError, f"'double' of {HEAD}"),
    "gradient shape": (_grad("bias", lambda g: torch.ones(5)), ValueError, f"'bias' of {BODY}: gradient has shape"),
    "gradient broadcastable": (_grad("embed", lambda g: torch.ones(4)), ValueError, f"'embed' of {BODY}: gradient has"),
    "parameter dtype": (_data("embed", lambda p: p.double()), RuntimeError, f"'embed' of {BODY}: its dtype was"),
    "parameter shape": (_data("out", lambda p: p[:2].clone()), RuntimeError, f"'out' of {HEAD}: its shape was"),
    "state shape": (_state("embed", "exp_avg", torch.ones(3)), ValueError, f"'embed' of {BODY}.*exp_avg of shape"),
    "state missing": (_state("out", "exp_avg_sq", None), ValueError, f"'out' of {HEAD}: state dict holds"),
    "state step": (_state("out", "step", torch.tensor(-1.0)), ValueError, f"'out' of {HEAD}.*step"),
}
# fmt: on


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", EDITS)
def test_step_refuses(name: str, backend: str) -> None:
    bad, error, match = EDITS[name]
    ours, twin = _build(backend), _build(backend)
    for optimizer in (ours, twin):
        set_gradients(optimizer.param_groups, 1)
    undo = bad(ours)
    before = Snapshot(
        ours,
        [
            p.grad
            for p in all_params(ours)
            if p.grad is not None and p.grad.layout is torch.strided and not p.grad.is_meta
        ],
    )
    for _ in range(2):
        with pytest.raises(error, match=match):
            ours.step()
        before.assert_unchanged()
    undo()
    ours.step()
    twin.step()
    step(ours, twin, seed=2)
    assert_same_optimizers(ours, twin)


def test_a_refused_setting_stays_refused_whatever_else_changes() -> None:
    """Foreign state makes what the state holds be noted anew, which must not cover for the group."""
    ours = _build("auto")
    set_gradients(ours.param_groups, 1)
    ours.param_groups[0]["lr"] = math.nan
    for number in range(3):
        ours.state["mine"] = {"number": number}
        with pytest.raises(ValueError, match="lr"):
            ours.step()


@pytest.mark.parametrize("role", ["tail", "", "Body", 3])
def test_step_refuses_an_unknown_role(role: Any) -> None:
    ours = _build("auto")
    set_gradients(ours.param_groups, 1)
    before = Snapshot(ours)
    called: list[int] = []
    with pytest.raises(ValueError, match="unknown role"):
        ours.step(lambda: called.append(1), role=role)
    assert called == []
    before.assert_unchanged()


def test_step_refuses_a_role_that_no_group_has() -> None:
    ours = sf.StackelbergSGD([nn.Parameter(torch.ones(3))])
    step(ours)
    before = Snapshot(ours)
    with pytest.raises(ValueError, match=r"step\(role='head'\): no param group has this role"):
        ours.step(role="head")
    before.assert_unchanged()


def _dict(edit: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def bad(saved: dict[str, Any]) -> dict[str, Any]:
        saved = copy.deepcopy(saved)
        edit(saved)
        return saved

    return bad


# fmt: off
DICTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "groups": (lambda d: d["param_groups"].pop(), "different number of parameter groups"),
    "sizes": (lambda d: d["param_groups"][0]["params"].pop(), "doesn't match the size"),
    "shape": (lambda d: d["state"][3].update(exp_avg=torch.ones(2)), f"'out' of {HEAD}.*exp_avg of shape \\(2,\\)"),
    "same numel, other shape": (
        lambda d: d["state"][0].update(exp_avg_sq=torch.ones(4, 6)),
        f"'embed' of {BODY}.*exp_avg_sq of shape \\(4, 6\\)",
    ),
    "missing": (lambda d: d["state"][0].pop("exp_avg"), f"'embed' of {BODY}: state dict holds"),
    "another rule's": (lambda d: d["state"][3].update(momentum_buffer=torch.ones(5, 4)), f"'out' of {HEAD}.*'adamw'"),
    "adam's state for sgd": (lambda d: d["state"][2].update(exp_avg=torch.ones(())), f"'scale' of {SGD}.*rule 'sgd'"),
    "no tensor": (lambda d: d["state"][0].update(exp_avg=1.0), f"'embed' of {BODY}.*exp_avg of shape float"),
    "step negative": (lambda d: d["state"][0].update(step=torch.tensor(-1.0)), f"'embed' of {BODY}.*step"),
    "step nan": (lambda d: d["state"][0].update(step=math.nan), f"'embed' of {BODY}.*step"),
    "steps": (lambda d: d["state"][0].update(step=torch.ones(2)), f"'embed' of {BODY}.*step"),
    "step text": (lambda d: d["state"][0].update(step="7"), f"'embed' of {BODY}.*step"),
    "lr": (lambda d: d["param_groups"][2].update(lr=math.nan), f"{HEAD}: invalid lr"),
    "betas": (lambda d: d["param_groups"][0].update(betas=(0.9, 1.5)), f"{BODY}: invalid betas"),
    "role": (lambda d: d["param_groups"][0].update(role="tail"), "param group 0: unknown role 'tail'"),
    "rule": (lambda d: d["param_groups"][0].update(rule="lion"), f"{BODY}: unknown rule 'lion'"),
}
# fmt: on


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", DICTS)
def test_load_state_dict_refuses(name: str, backend: str) -> None:
    edit, match = DICTS[name]
    ours, twin = _build(backend), _build(backend)
    bad = _dict(edit)(ours.state_dict())
    before = Snapshot(ours)
    settings = copy.deepcopy(
        [{k: v for k, v in g.items() if k != "params"} for g in ours.param_groups]
    )
    with pytest.raises((ValueError, TypeError), match=match):
        ours.load_state_dict(bad)
    before.assert_unchanged()
    assert [{k: v for k, v in g.items() if k != "params"} for g in ours.param_groups] == settings
    step(ours, twin, seed=2)
    assert_same_optimizers(ours, twin)
