"""What the package exports belongs to it, wherever it lies inside."""

from __future__ import annotations

import copy
import pickle
from typing import Any, get_type_hints

import pytest
import torch

import stackelberg_fused as sf

EXPORTED = [name for name in sf.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_names_are_of_the_package(name: str) -> None:
    exported = getattr(sf, name)
    assert (exported.__module__, exported.__qualname__) == ("stackelberg_fused", name)
    assert pickle.loads(pickle.dumps(exported)) is exported
    get_type_hints(exported)


@pytest.mark.parametrize(
    "value", [sf.Box(0.0, 1.0), sf.L2Ball(2.0), sf.NonNegative(), sf.Simplex()]
)
def test_values_are_pickled_by_their_public_name(value: Any) -> None:
    written = pickle.dumps(value)
    assert b"stackelberg_fused.groups" not in written
    assert pickle.loads(written) == value


def test_pickles_of_before_load() -> None:
    """Until then they named the module inside of the package."""
    written = pickle.dumps(sf.L2Ball(2.0), protocol=0)
    old = written.replace(b"cstackelberg_fused\n", b"cstackelberg_fused.groups.constraints\n")
    old = old.replace(b"Vstackelberg_fused\n", b"Vstackelberg_fused.groups.constraints\n")
    assert old != written
    assert pickle.loads(old) == sf.L2Ball(2.0)


@pytest.mark.parametrize("cls", [sf.StackelbergAdam, sf.StackelbergAdamW, sf.StackelbergSGD])
def test_an_optimizer_is_pickled_by_its_public_name(cls: type) -> None:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = cls([param], lr=0.1)
    param.grad = torch.ones(3)
    optimizer.step()
    assert repr(cls) == f"<class 'stackelberg_fused.{cls.__name__}'>"
    written = pickle.dumps(optimizer)
    assert (
        f"stackelberg_fused\x94\x8c{chr(len(cls.__name__))}{cls.__name__}".encode("latin-1")
        in written
    )
    for again in (pickle.loads(written), copy.deepcopy(optimizer)):
        assert type(again) is cls
        assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
