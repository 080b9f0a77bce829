"""Param groups whose rates are searched: what they may be, and how they are named."""

from __future__ import annotations

from typing import Any

import torch
from scales import Scales, search_scales
from torch import nn

from stackelberg_fused.game.rate_groups import elements, param_groups


def test_every_group_has_a_name_of_its_own() -> None:
    def alike(model: nn.Module) -> list[dict[str, Any]]:
        names = ["a", "a 2", "a", "one rate"]
        parts = [*model.parameters(), nn.Parameter(torch.zeros(2))]
        return [{"params": p, "name": n} for p, n in zip(parts, names, strict=True)]

    found = search_scales(groups=alike, budget=1, steps=2)
    assert found.names == ["a", "a 2", "a 3", "one rate 3"]
    assert len(found.rates) == 4


def test_a_group_may_be_a_tensor() -> None:
    """As in torch."""
    bare = [{"params": p, "name": n} for n, p in Scales().named_parameters()]
    torch.optim.SGD(bare, lr=0.1)

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        return [{"params": p, "name": n} for n, p in model.named_parameters()]

    found = search_scales(groups=groups, budget=3)
    assert found.trials == search_scales(budget=3).trials


def test_elements_are_counted_with_names_and_without() -> None:
    lazy = nn.LazyLinear(3)
    groups = param_groups(
        [
            {"params": nn.Linear(2, 3).named_parameters()},
            {"params": nn.Linear(2, 3).weight},
            {"params": [*lazy.parameters()]},
        ]
    )
    assert elements(groups) == [9, 6, 0]
