"""A player that rests in a step is missing in its report."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import stackelberg_fused as sf


def test_a_player_that_rests_has_no_norm() -> None:
    """A zero would be drawn as one: as if its gradients had vanished."""
    groups = [{"params": [nn.Parameter(torch.ones(4))], "role": role} for role in ("body", "head")]
    optimizer = sf.StackelbergSGD(groups, max_grad_norm=1.0, update_every={"body": 2})
    found = []
    for role in (None, None, "head", "body", None):
        for group in groups:
            group["params"][0].grad = torch.full((4,), 1.5)
        optimizer.step(role=role)
        report = optimizer.last_step.as_dict()
        measured = {key: value for key, value in report.items() if value is not None}
        found.append([r for r in ("body", "head") if f"grad_norm/{r}" in measured])
        assert found[-1] == [r for r in ("body", "head") if f"clip_factor/{r}" in measured]
        assert report["grad_norm/total"] == pytest.approx(3.0 * math.sqrt(len(found[-1])))
    both = ["body", "head"]
    assert found == [["head"], both, ["head"], [], both]


def test_a_player_rests_when_it_waits_in_every_table() -> None:
    params = [nn.Parameter(torch.ones(4, dtype=d)) for d in (torch.float32, torch.float64)]
    groups = [{"params": params}, {"params": [nn.Parameter(torch.ones(4))], "role": "head"}]
    optimizer = sf.StackelbergSGD(groups, max_grad_norm=1.0, update_every={"body": 2})
    found = []
    for _ in range(2):
        for group in groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
        found.append("body" in optimizer.last_step.grad_norm)
    assert found == [False, True]
