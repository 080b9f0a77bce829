"""A checkpoint whose named parameters lie in other groups is loaded by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import Snapshot, assert_same_bits
from torch import nn

import stackelberg_fused as sf

PAIRS = [
    (torch.optim.Adam, sf.StackelbergAdam, {}),
    (torch.optim.AdamW, sf.StackelbergAdamW, {"amsgrad": True}),
    (torch.optim.SGD, sf.StackelbergSGD, {"momentum": 0.9}),
]


class Net(nn.Module):
    """The head comes first, so that no position is the same in both orders."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def _train(model: nn.Module, optimizer: Any, steps: int, seed: int = 0) -> None:
    for number in range(steps):
        x = torch.randn((3, 4), generator=torch.Generator().manual_seed(seed + number))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def _trained(kind: Any, groups: Callable[[nn.Module], Any], **options: Any) -> tuple[Net, Any]:
    torch.manual_seed(0)
    model = Net()
    optimizer = kind(groups(model), lr=0.01, **options)
    _train(model, optimizer, 2)
    return model, optimizer


def _by_name(optimizer: Any) -> dict[str, dict[str, Any]]:
    return {
        name: optimizer.state[param]
        for group in optimizer.param_groups
        for name, param in zip(group["param_names"], group["params"], strict=True)
    }


@pytest.mark.parametrize("no_decay", [False, True])
@pytest.mark.parametrize("torchs, ours, options", PAIRS)
def test_torchs_one_group_goes_on_in_split_groups(
    torchs: Any, ours: Any, options: dict[str, Any], no_decay: bool
) -> None:
    theirs, expected = _trained(torchs, lambda m: m.named_parameters(), **options)
    model = copy.deepcopy(theirs)
    groups = sf.split_body_head(model, no_decay=no_decay)
    optimizer = ours(groups, lr=0.5, backend="reference", **options)
    roles = [group["role"] for group in optimizer.param_groups]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "body and head now share one learning rate")
        optimizer.load_state_dict(expected.state_dict())
    assert [group["lr"] for group in optimizer.param_groups] == [0.01] * len(groups)
    assert [group["role"] for group in optimizer.param_groups] == roles
    for name, entry in _by_name(optimizer).items():
        for key, value in _by_name(expected)[name].items():
            if isinstance(value, torch.Tensor) and value.dim():
                assert_same_bits(entry[key], value, f"{key} of {name}")
    for one, other in ((theirs, expected), (model, optimizer)):
        _train(one, other, 2, seed=5)
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_our_own_of_one_group() -> None:
    model, old = _trained(sf.StackelbergAdamW, lambda m: m.named_parameters(), state_dtype="8bit")
    new = sf.StackelbergAdamW(
        sf.split_body_head(model), lr=0.01, head_lr_ratio=1.0, state_dtype="8bit"
    )
    new.load_state_dict(old.state_dict())
    assert [group["role"] for group in new.param_groups] == ["body", "head"]
    for name, entry in _by_name(old).items():
        for key, value in entry.items():
            assert_same_bits(_by_name(new)[name][key], value)


def test_the_same_groups_in_another_order() -> None:
    model, old = _trained(torch.optim.AdamW, lambda m: reversed(list(m.named_parameters())))
    new = sf.StackelbergAdamW(model.named_parameters())
    new.load_state_dict(old.state_dict())
    for name, entry in _by_name(old).items():
        assert_same_bits(_by_name(new)[name]["exp_avg"], entry["exp_avg"])


@pytest.mark.parametrize("wrapped", ["old", "new"])
def test_names_with_those_of_a_wrapper(wrapped: str) -> None:
    def in_wrapper(model: nn.Module) -> nn.Module:
        return nn.DataParallel(model)

    wrap_old, wrap_new = (in_wrapper if wrapped == w else (lambda m: m) for w in ("old", "new"))
    model, old = _trained(torch.optim.AdamW, lambda m: wrap_old(m).named_parameters())
    new = sf.StackelbergAdamW(sf.split_body_head(wrap_new(model)), lr=0.01, head_lr_ratio=1.0)
    new.load_state_dict(old.state_dict())
    for p in model.parameters():
        assert_same_bits(new.state[p]["exp_avg"], old.state[p]["exp_avg"])


def test_groups_that_differ_in_a_setting() -> None:
    def by_layer(model: nn.Module) -> list[dict[str, Any]]:
        layers = [
            [(name, p) for name, p in model.named_parameters() if name.startswith(layer)]
            for layer in ("head", "body.0", "body.1")
        ]
        return [{"params": params, "weight_decay": 0.1 * i} for i, params in enumerate(layers)]

    model, old = _trained(torch.optim.AdamW, by_layer)
    new = sf.StackelbergAdamW(sf.split_body_head(model))
    before = Snapshot(new)
    with pytest.raises(ValueError, match=r"group 0 \(body\): .*several groups.*'weight_decay'"):
        new.load_state_dict(old.state_dict())
    before.assert_unchanged()


@pytest.mark.parametrize("names", ["none", "others"])
def test_without_the_same_names_torch_decides(names: str) -> None:
    model, old = _trained(torch.optim.AdamW, lambda m: m.named_parameters())
    saved = old.state_dict()
    if names == "none":
        del saved["param_groups"][0]["param_names"]
    else:
        saved["param_groups"][0]["param_names"][0] = "other"
    new = sf.StackelbergAdamW(sf.split_body_head(model))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        new.load_state_dict(saved)
    again = sf.StackelbergAdamW(model.named_parameters())
    again.load_state_dict(saved)  # by position, as torch


def test_the_loaded_dict_is_left_as_it_was() -> None:
    model, old = _trained(torch.optim.AdamW, lambda m: m.named_parameters())
    saved = old.state_dict()
    groups = copy.deepcopy(saved["param_groups"])
    new = sf.StackelbergAdamW(sf.split_body_head(model), lr=0.01, head_lr_ratio=1.0)
    new.load_state_dict(saved)
    assert saved["param_groups"] == groups


def test_a_rate_in_a_tensor_is_each_groups_own() -> None:
    model, again = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)) for _ in range(2))
    saved = torch.optim.AdamW(model.named_parameters(), lr=torch.tensor(1e-3)).state_dict()
    ours = sf.StackelbergAdamW(sf.split_body_head(again, head="1"), lr=torch.tensor(0.1))
    ours.load_state_dict(saved)
    body, head = (group["lr"] for group in ours.param_groups)
    assert body is not head
    head.fill_(1.0)
    assert float(body) == pytest.approx(1e-3)
