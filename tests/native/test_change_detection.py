"""Dicts and lists that hold other objects than they held are noticed: by identity, in C++ and in Python alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from stackelberg_fused.native import change_detection
from stackelberg_fused.native.change_detection import make_address_snapshot


@pytest.fixture(params=["native", "python"])
def snapshot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "python":
        monkeypatch.setattr(change_detection, "NativeContainerSnapshot", None)
    elif change_detection.NativeContainerSnapshot is None:
        pytest.skip("_cpu is not built here")
    return change_detection.make_container_snapshot


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
def test_edits_are_noticed_until_noted(snapshot: Any, name: str) -> None:
    containers = _containers()
    held = snapshot(containers)
    assert held.changed() == []
    index, edit = EDITS[name]
    edit(containers[index])
    assert held.changed() == held.changed() == [index]
    held.note(index)
    assert held.changed() == []


def test_in_place_changes_and_equal_assignments_are_none(snapshot: Any) -> None:
    containers = _containers()
    held = snapshot(containers)
    containers[0]["exp_avg"].fill_(3)
    containers[0]["exp_avg"] = containers[0]["exp_avg"]
    containers[1][:] = list(containers[1])
    assert held.changed() == []


def test_only_dicts_and_lists(snapshot: Any) -> None:
    with pytest.raises(TypeError):
        snapshot([()])


def test_no_such_container(snapshot: Any) -> None:
    with pytest.raises(IndexError):
        snapshot([{}]).note(1)


def _rated() -> tuple[list[Any], np.ndarray]:
    """Groups, and every second double of an array for their rates."""
    groups = [{"params": [], "lr": 0.1, "eps": 1e-8}, {"lr": 0.2}, {"eps": 1e-8}]
    return groups, np.zeros((3, 2))[:, 0]


@pytest.mark.parametrize("rate", [0.5, 0.0, 3e38])
def test_a_new_rate_is_written_and_no_change(snapshot: Any, rate: float) -> None:
    groups, rates = _rated()
    held = snapshot(groups, rates)
    assert not held.took_over()
    groups[1]["lr"] = rate
    assert held.changed() == []
    assert rates.tolist() == [0.0, rate, 0.0]
    assert (held.took_over(), held.took_over()) == (True, False)
    groups[1]["lr"] = groups[0]["lr"] = 0.75
    assert held.changed() == []
    assert rates.tolist() == [0.75, 0.75, 0.0]


EDITED_RATES: dict[str, Callable[[Any], Any]] = {
    "negative": lambda g: g.update(lr=-0.5),
    "nan": lambda g: g.update(lr=float("nan")),
    "infinite": lambda g: g.update(lr=float("inf")),
    "beyond float32": lambda g: g.update(lr=1e39),
    "a float of another type": lambda g: g.update(lr=np.float64(0.5)),
    "an int": lambda g: g.update(lr=1),
    "a tensor": lambda g: g.update(lr=torch.tensor(0.5)),
    "with another": lambda g: g.update(lr=0.5, eps=1e-3),
    "another": lambda g: g.update(eps=1e-3),
    "gone": lambda g: g.pop("lr"),
}


@pytest.mark.parametrize("name", EDITED_RATES)
def test_any_other_edit_of_a_rate_is_a_change(snapshot: Any, name: str) -> None:
    groups, rates = _rated()
    held = snapshot(groups, rates)
    EDITED_RATES[name](groups[0])
    assert held.changed() == held.changed() == [0]
    assert not rates.any()
    assert not held.took_over()
    held.note(0)
    assert held.changed() == []


def test_without_rates_a_rate_is_a_value_like_any_other(snapshot: Any) -> None:
    groups, _ = _rated()
    held = snapshot(groups)
    groups[0]["lr"] = 0.5
    assert held.changed() == [0]


@pytest.mark.parametrize("name", EDITS)
def test_a_lookout_says_whether_any_changed(snapshot: Any, name: str) -> None:
    containers, rates = _containers(), np.zeros(1)
    group = {"lr": 0.1, "betas": (0.9, 0.99)}
    tensors = [torch.zeros(3), torch.zeros(2)]
    addresses = make_address_snapshot(tensors)
    of_groups = snapshot([group], rates)
    detector = change_detection.make_change_detector([snapshot(containers), of_groups], [addresses])
    assert detector.is_unchanged()
    group["lr"] = 0.5
    assert detector.is_unchanged()  # a rate is taken over on the way
    assert rates[0] == 0.5
    assert of_groups.took_over()
    index, edit = EDITS[name]
    edit(containers[index])
    assert not detector.is_unchanged()
    assert not detector.is_unchanged()


def test_a_lookout_notices_state_that_moved(snapshot: Any) -> None:
    tensors = [torch.zeros(3), torch.zeros(2)]
    detector = change_detection.make_change_detector(
        [snapshot([{}])], [make_address_snapshot([]), make_address_snapshot(tensors)]
    )
    assert detector.is_unchanged()
    tensors[1].data = torch.zeros(2)
    assert not detector.is_unchanged()
