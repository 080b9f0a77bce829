"""What all callbacks have in common: the numbers of a report, optimizers in wrappers, libraries that are missing."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.integrations.reports import averages_of, averaging, ours, report

MODULES = {"transformers": ("transformers",), "lightning": ("lightning", "pytorch_lightning")}


def _optimizer(**options: Any) -> Any:
    groups = [
        {"params": [nn.Parameter(torch.ones(3))], "lr": 0.5},
        {"params": [nn.Parameter(torch.ones(3))], "lr": 0.25, "name": "norms"},
        {"params": [nn.Parameter(torch.ones(3))], "lr": 2.0, "role": "head"},
    ]
    return sf.StackelbergSGD(groups, **options)


def _step(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()


class Wrapper:
    """As Accelerate's: the optimizer is an attribute."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


def test_a_report_has_what_there_is() -> None:
    optimizer = _optimizer()
    _step(optimizer)
    rates = {"optimizer/lr/body": 0.5, "optimizer/lr/norms": 0.25, "optimizer/lr/head": 2.0}
    assert report([optimizer]) == {"optimizer/launches": 1.0, **rates}
    optimizer = _optimizer(max_grad_norm={"head": 1.0})
    _step(optimizer)
    found = report([optimizer], gap=lambda: 0.125)
    assert found["optimizer/grad_norm/head"] == pytest.approx(3**0.5)
    assert found["optimizer/grad_norm/total"] == pytest.approx(3.0)
    assert found["optimizer/clip_factor/head"] == pytest.approx(3**-0.5, rel=1e-5)
    assert found["optimizer/clip_factor/body"] == 1.0
    assert found["optimizer/follower_gap"] == 0.125
    assert all(type(value) is float for value in found.values())


def test_a_player_that_rested_is_not_reported() -> None:
    optimizer = _optimizer(max_grad_norm=1.0)
    _step(optimizer)
    optimizer.step(role="head")
    measured = {key for key in report([optimizer]) if "/lr/" not in key}
    assert measured == {
        *("optimizer/grad_norm/head", "optimizer/grad_norm/total"),
        *("optimizer/clip_factor/head", "optimizer/launches"),
    }


def test_several_optimizers_and_groups_without_a_name() -> None:
    optimizer = _optimizer()
    del optimizer.param_groups[1]["name"]
    found = report([optimizer, _optimizer()])
    assert {key for key in found if "/lr/" in key} == {
        *("optimizer0/lr/body.0", "optimizer0/lr/body.1", "optimizer0/lr/head"),
        *("optimizer1/lr/body", "optimizer1/lr/norms", "optimizer1/lr/head"),
    }


def test_optimizers_in_wrappers() -> None:
    optimizer, other = _optimizer(), torch.optim.SGD([nn.Parameter(torch.ones(1))])
    assert ours([Wrapper(Wrapper(optimizer)), optimizer, other, Wrapper(other), None]) == [
        optimizer,
        optimizer,
    ]
    assert averaging([optimizer]) == []


def test_averages_and_back() -> None:
    optimizer = _optimizer(ema_decay=0.5)
    _step(optimizer)
    _step(optimizer)
    param = optimizer.param_groups[0]["params"][0]
    weight, average = param.detach().clone(), optimizer.state[param]["ema"].clone()
    with averages_of([Wrapper(optimizer)]), averages_of([optimizer]):
        assert torch.equal(param, average)
    assert torch.equal(param, weight)
    assert not torch.equal(weight, average)


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_library_is_named(name: str) -> None:
    if any(importlib.util.find_spec(package) for package in MODULES[name]):
        pytest.skip(f"{name} is installed")
    with pytest.raises(ImportError, match=f"needs the package {name}"):
        importlib.import_module(f"stackelberg_fused.integrations.{name}")


def test_no_trainer_is_imported_with_the_package() -> None:
    code = (
        "import sys, stackelberg_fused, stackelberg_fused.integrations.reports; "
        "print([m for m in ('transformers', 'lightning', 'pytorch_lightning') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
