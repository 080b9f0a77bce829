"""What docs/moving.md says of checkpoints of other optimizers, in the form in which these save them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from beside_torch import assert_close_weights, assert_same_weights, small_batches, small_net
from checks import Snapshot
from torch import nn

import stackelberg_fused as sf

LR = 1e-2


def _train(model: nn.Module, optimizers: Any, batches: Any) -> None:
    for inputs, targets in batches:
        nn.functional.mse_loss(model(inputs), targets).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def _trained(kind: Any = torch.optim.AdamW) -> tuple[nn.Module, Any]:
    model = small_net()
    optimizer = kind(model.parameters(), lr=LR)
    _train(model, [optimizer], small_batches()[:4])
    return model, optimizer


def _goes_on(model: nn.Module, optimizer: Any, expected: nn.Module, others: Any) -> None:
    _train(model, [optimizer], small_batches()[4:])
    _train(expected, others, small_batches()[4:])
    assert_close_weights(model, expected)


def _with_plain_counts(saved: dict[str, Any]) -> None:
    """As DeepSpeedCPUAdam."""
    for state in saved["state"].values():
        state["step"] = int(state["step"])


def _without_counts(saved: dict[str, Any]) -> None:
    """As apex and optimi, which count in the group."""
    for state in saved["state"].values():
        saved["param_groups"][0]["step"] = int(state.pop("step"))


def _in_codes(saved: dict[str, Any]) -> None:
    """As bitsandbytes."""
    for state in saved["state"].values():
        shape = state["exp_avg"].shape
        codes = {n: torch.zeros(shape, dtype=torch.uint8) for n in ("state1", "state2")}
        tables = {"absmax1": torch.ones(1), "qmap1": torch.ones(256)}
        state.clear()
        state.update(step=4, **codes, **tables)


def test_counts_that_are_numbers() -> None:
    expected, other = _trained()
    model = copy.deepcopy(expected)
    saved = copy.deepcopy(other.state_dict())
    _with_plain_counts(saved)
    optimizer = sf.StackelbergAdamW(model.parameters(), lr=LR)
    optimizer.load_state_dict(saved)
    _goes_on(model, optimizer, expected, [other])


def test_counts_by_group_are_put_to_parameters() -> None:
    expected, other = _trained()
    model = copy.deepcopy(expected)
    saved = copy.deepcopy(other.state_dict())
    _without_counts(saved)
    for group in saved["param_groups"]:
        count = float(group.pop("step"))
        for index in group["params"]:
            saved["state"][index]["step"] = torch.tensor(count)
    optimizer = sf.StackelbergAdamW(model.parameters(), lr=LR)
    optimizer.load_state_dict(saved)
    _goes_on(model, optimizer, expected, [other])


@pytest.mark.parametrize("edit", [_without_counts, _in_codes])
def test_what_cannot_be_read_is_refused(edit: Any) -> None:
    model, other = _trained()
    saved = copy.deepcopy(other.state_dict())
    edit(saved)
    optimizer = sf.StackelbergAdamW(model.parameters(), lr=LR)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match="does not fit rule 'adamw'"):
        optimizer.load_state_dict(saved)
    before.assert_unchanged()


def test_an_adam_for_each_parameter() -> None:
    """Rates of their own, one of them changed on the way; joined in the order of the groups."""
    rates = (1e-3, 2e-3, 3e-3, 1e-2)
    expected = small_net()
    adams = [
        torch.optim.Adam([p], lr=lr, eps=1e-15)
        for p, lr in zip(expected.parameters(), rates, strict=True)
    ]
    _train(expected, adams, small_batches()[:4])
    model = copy.deepcopy(expected)
    groups = [
        {"params": [p], "lr": lr, "name": str(number)}
        for number, (p, lr) in enumerate(zip(model.parameters(), rates, strict=True))
    ]
    optimizer = sf.StackelbergAdam(groups, eps=1e-15)
    joined = optimizer.state_dict()
    for index, adam in enumerate(adams):
        joined["state"][index] = adam.state_dict()["state"][0]
    optimizer.load_state_dict(copy.deepcopy(joined))
    for one in (optimizer.param_groups[1], adams[1].param_groups[0]):
        one["lr"] = 5e-3
    _goes_on(model, optimizer, expected, adams)
    assert optimizer.launches == 4


def test_a_group_for_each_layer() -> None:
    """The same groups load by position, without names."""

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        return [
            {"params": model[0].parameters(), "lr": 1e-3, "lr_scale": 0.1},
            {"params": model[2].parameters(), "lr": 1e-2, "lr_scale": 1.0},
        ]

    expected = small_net()
    other = torch.optim.AdamW(groups(expected))
    _train(expected, [other], small_batches()[:4])
    model = copy.deepcopy(expected)
    optimizer = sf.StackelbergAdamW(groups(model))
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    assert [g["lr_scale"] for g in optimizer.param_groups] == [0.1, 1.0]
    _goes_on(model, optimizer, expected, [other])


def test_one_group_without_names_into_body_and_head() -> None:
    """torch gives a checkpoint the names; rates are set anew, and a step is then as of torch's with these rates."""
    model, old = _trained()
    expected = copy.deepcopy(model)
    named = torch.optim.AdamW(model.named_parameters())
    named.load_state_dict(copy.deepcopy(old.state_dict()))
    optimizer = sf.StackelbergAdamW(sf.split_body_head(model, head="2"), lr=1e-3)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(old.state_dict())
    rates = [group["lr"] for group in optimizer.param_groups]
    with pytest.warns(UserWarning, match="share one learning rate"):
        optimizer.load_state_dict(named.state_dict())
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    assert_same_weights(model, expected)

    other = torch.optim.AdamW(
        [
            {"params": expected[0].parameters(), "lr": 1e-3},
            {"params": expected[2].parameters(), "lr": 1e-2},
        ]
    )
    for p, q in zip(expected.parameters(), model.parameters(), strict=True):
        other.state[p] = {n: v.clone() for n, v in optimizer.state[q].items()}
    _goes_on(model, optimizer, expected, [other])
