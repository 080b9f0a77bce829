"""Whether dicts and lists still hold the objects they held: by identity, in C++ and in Python alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from stackelberg_fused.watch import PythonWatch, Watch

WATCHES = [PythonWatch] if Watch is PythonWatch else [PythonWatch, Watch]


@pytest.fixture(params=WATCHES, ids=lambda cls: cls.__module__.rpartition(".")[2])
def watch(request: pytest.FixtureRequest) -> Any:
    return request.param


def _containers() -> list[Any]:
    tensors = [torch.zeros(()) for _ in range(3)]
    entry = defaultdict(dict, {"exp_avg": tensors[0], "exp_avg_sq": tensors[1]})
    return [entry, [tensors[0], tensors[1]], {}, []]


EDITS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "equal tensor": (0, lambda c: c.update(exp_avg=torch.zeros(()))),
    "another key": (0, lambda c: c.update(mine=1)),
    "a renamed key": (0, lambda c: c.update({"other": c.pop("exp_avg_sq")})),
    "a key gone": (0, lambda c: c.pop("exp_avg")),
    "another order": (0, lambda c: c.update(exp_avg=c.pop("exp_avg"))),
    "cleared": (0, lambda c: c.clear()),
    "an item replaced": (1, lambda c: c.__setitem__(0, torch.zeros(()))),
    "items swapped": (1, lambda c: c.reverse()),
    "an item more": (1, lambda c: c.append(c[0])),
    "an item gone": (1, lambda c: c.pop()),
    "no longer empty dict": (2, lambda c: c.update(a=None)),
    "no longer empty list": (3, lambda c: c.append(None)),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_are_noticed_until_noted(watch: Any, name: str) -> None:
    containers = _containers()
    held = watch(containers)
    assert held.changed() == []
    index, edit = EDITS[name]
    edit(containers[index])
    assert held.changed() == held.changed() == [index]
    held.note(index)
    assert held.changed() == []


def test_in_place_changes_and_equal_assignments_are_none(watch: Any) -> None:
    containers = _containers()
    held = watch(containers)
    containers[0]["exp_avg"].fill_(3)
    containers[0]["exp_avg"] = containers[0]["exp_avg"]
    containers[1][:] = list(containers[1])
    assert held.changed() == []


def test_only_dicts_and_lists(watch: Any) -> None:
    with pytest.raises(TypeError):
        watch([()])


def test_no_such_container(watch: Any) -> None:
    with pytest.raises(IndexError):
        watch([{}]).note(1)
