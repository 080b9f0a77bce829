"""An optimizer that is built from another one's groups has not its options, and says so."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import stackelberg_fused as sf

OPTIONS: dict[str, Any] = {"max_grad_norm": 0.1, "grads": "flat", "backend": "reference"}


def _optimizer(**options: Any) -> sf.StackelbergAdamW:
    model = nn.Linear(3, 2)
    groups = [{"params": [model.weight]}, {"params": [model.bias], "role": "head"}]
    return sf.StackelbergAdamW(groups, lr=0.1, **options)


class Wrapped(sf.StackelbergAdamW):
    """As wrappers make it that reduce gradients between processes."""


def _copied(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [dict(group) for group in groups]


@pytest.mark.parametrize("groups_of", [lambda groups: groups, _copied])
def test_what_the_groups_do_not_hold_is_named(groups_of: Any) -> None:
    old = _optimizer(**OPTIONS)
    said = r"Wrapped .* StackelbergAdamW, .*grads='flat', backend='reference', max_grad_norm=0\.1"
    with pytest.warns(UserWarning, match=said) as seen:
        new = Wrapped(groups_of(old.param_groups))
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert [group["lr"] for group in new.param_groups] == [0.1, 1.0]


def test_of_several_the_latest_counts() -> None:
    old = _optimizer(max_grad_norm=0.1)
    with pytest.warns(UserWarning, match="max_grad_norm=0.1"):
        middle = Wrapped(_copied(old.param_groups))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Wrapped(_copied(middle.param_groups))


def test_one_option_that_is_passed_again() -> None:
    old = _optimizer(**OPTIONS)
    with pytest.warns(UserWarning, match=r"hold its backend='reference': pass it again"):
        Wrapped(old.param_groups, max_grad_norm=None, grads="gather")


def test_where_nothing_is_lost() -> None:
    plain, old = _optimizer(), _optimizer(**OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Wrapped(plain.param_groups)
        Wrapped(old.param_groups, **OPTIONS)


def test_other_optimizers_of_the_same_parameters() -> None:
    model = nn.Linear(3, 2)
    old = sf.StackelbergAdamW(model.parameters(), **OPTIONS)
    foreign = torch.optim.AdamW(model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.StackelbergAdamW(model.parameters())
        sf.StackelbergAdamW(foreign.param_groups)
    assert old.max_grad_norm == 0.1


def test_it_is_not_kept_alive() -> None:
    old = _optimizer(**OPTIONS)
    groups = _copied(old.param_groups)
    del old
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Wrapped(groups)
