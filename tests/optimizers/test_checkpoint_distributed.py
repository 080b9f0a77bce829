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
