"""The types that editors show beside the tables that are looked up at run time: the same strings in both."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends import BACKENDS
from stackelberg_fused.game.follower_objective import LOSSES
from stackelberg_fused.groups import option_types as types
from stackelberg_fused.groups.param_groups import ROLES
from stackelberg_fused.groups.rules import HYPERPARAMETERS
from stackelberg_fused.groups.schemes import FLOAT32_STATE, MASTERS, STATE_DTYPES


def strings(annotation: Any) -> set[str]:
    """Every string of a type."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return set().union(*map(strings, get_args(annotation)))


@pytest.mark.parametrize(
    "annotation, table",
    [
        (types.Role, ROLES),
        (types.RuleName, HYPERPARAMETERS),
        (types.BackendName, ["auto", *BACKENDS]),
        (types.Master, MASTERS),
        (types.StateDtype, STATE_DTYPES),
        (types.Float32State, FLOAT32_STATE),
        (types.LossLike, LOSSES),
    ],
)
def test_types_are_the_tables_strings(annotation: Any, table: Any) -> None:
    assert strings(annotation) == {name for name in table if isinstance(name, str)}


@pytest.mark.parametrize(
    "name, annotation",
    [
        ("grads", types.Grads),
        ("mode", types.Mode),
        ("update_every_grads", types.UpdateEveryGrads),
        ("tied", types.Tied),
    ],
)
def test_types_are_the_strings_that_errors_name(name: str, annotation: Any) -> None:
    def split(tied: Any) -> None:
        sf.split_body_head(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), "1", tied=tied)

    def build(**option: Any) -> None:
        sf.StackelbergAdamW([torch.zeros(2, requires_grad=True)], **option)

    with pytest.raises(ValueError) as refused:
        (split if name == "tied" else build)(**{name: "?"})
    assert set(re.findall(r"'(\w+)'", str(refused.value))) == strings(annotation)
