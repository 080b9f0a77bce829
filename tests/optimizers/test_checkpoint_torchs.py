"""State dicts of torch's optimizers, whose kind, rates and tensors torch would take as they are."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import OURS, TORCHS, normal, step
from checks import Snapshot, assert_agree, assert_same_optimizers
from torch import Tensor, nn

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
MOMENTUM = {"lr": 0.1, "momentum": 0.9}


def _params(shape: tuple[int, ...] = (4, 6)) -> list[nn.Parameter]:
    return [nn.Parameter(normal(shape, n)) for n in range(2)]


@pytest.mark.parametrize("saved", ["adam", "adamw"])
@pytest.mark.parametrize("loading", ["adam", "adamw"])
@BACKENDS
def test_adam_and_adamw_load_each_others(backend: str, loading: str, saved: str) -> None:
    """torch's AdamW goes on as AdamW whatever it loads; its Adam takes over how the weights decayed."""
    source = TORCHS[saved](_params(), lr=0.1, weight_decay=0.5)
    step(source)
    theirs = TORCHS[loading](_params(), lr=0.1, foreach=False)
    ours = OURS[loading](_params(), lr=0.1, backend=backend)
    for optimizer in (theirs, ours):
        optimizer.load_state_dict(copy.deepcopy(source.state_dict()))
    for seed in range(1, 4):
        step(theirs, ours, seed=seed)
    assert_agree(ours, theirs)


@BACKENDS
def test_a_rate_that_groups_share_is_loaded_for_each(backend: str) -> None:
    torchs = torch.optim.AdamW([{"params": [p]} for p in _params()], lr=torch.tensor(0.25))
    groups = [{"params": [p], "role": r} for p, r in zip(_params(), ("body", "head"), strict=True)]
    ours = OURS["adamw"](groups, lr=torch.tensor(1.0), head_lr_ratio=4.0, backend=backend)
    with pytest.warns(UserWarning, match="share one learning rate"):
        ours.load_state_dict(torchs.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(ours, [lambda n: 1 - n / 4, lambda n: 1.0 + n])
    step(ours)
    schedule.step()
    assert [float(group["lr"]) for group in ours.param_groups] == [0.1875, 0.5]


@pytest.mark.parametrize("state_dtype", [None, "8bit"])
@BACKENDS
def test_sparse_momentum_counts_as_its_numbers(backend: str, state_dtype: str | None) -> None:
    """torch's SGD has it after sparse gradients; an index may occur several times."""
    ours, twin = (
        OURS["sgd"](_params(), **MOMENTUM, state_dtype=state_dtype, backend=backend) for _ in "ab"
    )
    step(ours, twin)
    sparse = torch.sparse_coo_tensor([[0, 0, 2], [1, 1, 5]], [0.5, 0.25, -1.0], (4, 6))
    for optimizer, momentum in ((ours, sparse), (twin, sparse.to_dense())):
        saved = TORCHS["sgd"](_params(), **MOMENTUM).state_dict()
        saved["state"] = {1: {"momentum_buffer": momentum}}
        optimizer.load_state_dict(saved)
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


@pytest.mark.parametrize(
    "layout",
    [Tensor.to_sparse_csr, Tensor.to_sparse_csc, lambda t: t.to_sparse_bsr((2, 2))],
    ids=["csr", "csc", "bsr"],
)
@pytest.mark.parametrize("rule, name", [("adamw", "exp_avg_sq"), ("sgd", "momentum_buffer")])
@BACKENDS
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_another_layout(backend: str, rule: str, name: str, layout: Callable[..., Any]) -> None:
    how = {"lr": 0.1, "momentum": 0.9} if rule == "sgd" else {"lr": 0.1}
    ours, twin = (OURS[rule](_params(), **how, backend=backend) for _ in range(2))
    step(ours, twin)
    saved = copy.deepcopy(ours.state_dict())
    for value in saved["state"][0].values():
        value.fill_(3.0)
    saved["state"][1][name] = layout(saved["state"][1][name])
    before = Snapshot(ours)
    message = rf"parameter 1 of param group 0 .*{name} of layout torch.sparse_"
    with pytest.raises(ValueError, match=message):
        ours.load_state_dict(saved)
    before.assert_unchanged()
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


def test_sparse_codes() -> None:
    how = {"state_dtype": "8bit", "float32_state": "none"}
    ours = OURS["adamw"](_params(), lr=0.1, backend="cpu", **how)
    step(ours)
    for name in ("exp_avg_code", "exp_avg_sq_scale"):
        saved = copy.deepcopy(ours.state_dict())
        saved["state"][0][name] = saved["state"][0][name].to_sparse()
        with pytest.raises(ValueError, match=re.escape(f"{name} of layout torch.sparse_coo")):
            ours.load_state_dict(saved)
