"""torch.distributed.checkpoint: it finds state by stepping an optimizer that has none, and by its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from cases import normal
from checks import assert_same_optimizers
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import stackelberg_fused as sf

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled.*:UserWarning")

MEAN = {"update_every": {"body": 4}, "update_every_grads": "mean"}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (sf.StackelbergAdamW, {}),
    "flat": (sf.StackelbergAdamW, {"grads": "flat"}),
    "average": (sf.StackelbergAdamW, {"ema_decay": 0.9}),
    "average, turns": (sf.StackelbergAdamW, {"ema_decay": 0.9, **MEAN}),
    "all": (sf.StackelbergAdamW, {"ema_decay": 0.9, "grads": "flat", **MEAN}),
    "SGD": (sf.StackelbergSGD, {"momentum": 0.9}),
    "SGD, flat": (sf.StackelbergSGD, {"momentum": 0.9, "grads": "flat"}),
    "SGD, turns": (sf.StackelbergSGD, {"momentum": 0.9, **MEAN}),
}


def _build(case: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    groups = [
        {"params": list(model[0].parameters())},
        {"params": list(model[1].parameters()), "role": "head"},
    ]
    cls, settings = CASES[case]
    return model, cls(groups, lr=1e-2, backend="cpu", **settings)


def _train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for number in steps:
        optimizer.zero_grad()
        model(normal((3, 4), number)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("case", CASES)
def test_continuing_is_as_not_interrupted(
    tmp_path: Path, case: str, steps: int, flattened: bool
) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    (model, ours), (other, again) = _build(case), _build(case)
    _train(model, ours, range(steps))
    saved = {"optimizer": get_optimizer_state_dict(model, ours, options=options)}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    other.load_state_dict(model.state_dict())
    found = {"optimizer": get_optimizer_state_dict(other, again, options=options)}
    dcp.load(found, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(other, again, found["optimizer"], options=options)
    assert_same_optimizers(again, ours)
    for side in ((model, ours), (other, again)):
        _train(*side, range(steps, steps + 5))
    assert_same_optimizers(again, ours)


@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("case", ["AdamW", "average, turns", "SGD"])
def test_a_checkpoint_of_torch_is_loaded_in_part(
    tmp_path: Path, case: str, flattened: bool
) -> None:
    """torch's planner refuses what a checkpoint lacks, as our own settings, unless it is told that it may."""
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    model, ours = _build(case)
    other, _ = _build(case)
    groups = [{"params": list(layer.parameters()), "lr": 0.3} for layer in other]
    is_sgd = case == "SGD"
    torchs = (
        torch.optim.SGD(groups, momentum=0.9) if is_sgd else torch.optim.AdamW(groups, eps=1e-7)
    )
    _train(other, torchs, range(3))
    saved = {"optimizer": get_optimizer_state_dict(other, torchs, options=options)}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    model.load_state_dict(other.state_dict())
    found = {"optimizer": get_optimizer_state_dict(model, ours, options=options)}
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(found, checkpoint_id=tmp_path, planner=planner, no_dist=True)
    set_optimizer_state_dict(model, ours, found["optimizer"], options=options)
    assert [g["lr"] for g in ours.param_groups] == [0.3, 0.3]
    assert ours.param_groups[0]["update_every"] == CASES[case][1].get("update_every", {}).get(
        "body", 1
    )
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for name in ("momentum_buffer",) if is_sgd else ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(ours.state[p][name], torchs.state[q][name], rtol=0, atol=0)
    if case == "AdamW":
        for side in ((model, ours), (other, torchs)):
            _train(*side, range(3, 6))
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q)
