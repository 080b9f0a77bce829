"""Many groups: work grows with their number and not with its square, and what torch checks of each is still checked."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import normal
from counted_work import growth
from torch import nn

import stackelberg_fused as sf

FACTOR = 8
# linear is FACTOR and less, because of what is done once; a square of one line per pair of groups shows
LINEAR = FACTOR * 1.02


def _groups(count: int, **settings: Any) -> list[dict[str, Any]]:
    return [
        {"params": [nn.Parameter(normal(2, i)) for i in range(2)], **settings} for _ in range(count)
    ]


def _stepped(count: int, optimizer_class: Any = sf.StackelbergAdamW) -> Any:
    optimizer = optimizer_class(_groups(count))
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


def _construct(count: int) -> Callable[[], Any]:
    groups = _groups(count)
    return lambda: sf.StackelbergAdamW(groups)


def _construct_with_own_rates(count: int) -> Callable[[], Any]:
    groups = _groups(count)
    for group in groups:
        group["lr"] = torch.tensor(0.1)
    return lambda: sf.StackelbergAdamW(groups)


def _construct_named(count: int) -> Callable[[], Any]:
    groups = _groups(count)
    for i, group in enumerate(groups):
        group["params"] = [(f"{i}.{k}", p) for k, p in enumerate(group["params"])]
    return lambda: sf.StackelbergAdamW(groups)


def _construct_over_columns(count: int) -> Callable[[], Any]:
    columns = normal((3, 2 * count), 1).unbind(1)
    groups = [{"params": list(map(nn.Parameter, columns[2 * i : 2 * i + 2]))} for i in range(count)]
    return lambda: sf.StackelbergAdamW(groups)


def _first_step(count: int) -> Callable[[], Any]:
    optimizer = sf.StackelbergAdamW(_groups(count))
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    return optimizer.step


def _load(count: int) -> Callable[[], Any]:
    optimizer = _stepped(count)
    packed = optimizer.state_dict()
    return lambda: optimizer.load_state_dict(packed)


def _load_torchs(count: int) -> Callable[[], Any]:
    packed = _stepped(count, torch.optim.AdamW).state_dict()
    optimizer = sf.StackelbergAdamW(_groups(count))
    return lambda: optimizer.load_state_dict(packed)


def _add(count: int) -> Callable[[], Any]:
    optimizer = _stepped(count)
    return lambda: optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})


def _step_of_a_copy(count: int) -> Callable[[], Any]:
    return copy.deepcopy(_stepped(count)).step


CALLS: dict[str, Callable[[int], Callable[[], Any]]] = {
    "construct": _construct,
    "construct with a rate of each group's own": _construct_with_own_rates,
    "construct named": _construct_named,
    "construct over the columns of a matrix": _construct_over_columns,
    "first step": _first_step,
    "second step": lambda count: _stepped(count).step,
    "state_dict": lambda count: _stepped(count).state_dict,
    "load_state_dict": _load,
    "load_state_dict of torch's": _load_torchs,
    "deepcopy": lambda count: lambda: copy.deepcopy(_stepped(count)),
    "step of a copy": _step_of_a_copy,
    "add_param_group": _add,
    "zero_grad": lambda count: _stepped(count).zero_grad,
}


@pytest.mark.parametrize("name", CALLS)
def test_work_grows_with_the_number_of_groups(name: str) -> None:
    found = growth(CALLS[name], 16, FACTOR)
    assert found <= LINEAR, f"{FACTOR} times as many groups are {found:.2f} times the work"


class _Watching(sf.StackelbergAdamW):
    """Sees its groups while the constructor adds them, and goes on without those that are refused."""

    def add_param_group(self, param_group: Any) -> None:
        self.seen = [*getattr(self, "seen", []), len(self.param_groups)]
        try:
            super().add_param_group(param_group)
        except ValueError as error:
            self.refused = str(error)
        else:
            assert self.param_groups[-1] is param_group


def test_an_override_of_add_param_group_sees_each_group_of_the_constructor() -> None:
    groups = _groups(3)
    optimizer = _Watching(groups)
    assert optimizer.seen == [0, 1, 2]
    assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
    optimizer.add_param_group(_groups(1)[0])
    assert optimizer.seen == [0, 1, 2, 3]


def test_a_group_that_an_override_leaves_out_is_not_there() -> None:
    groups = _groups(3)
    groups[2]["params"][1] = groups[0]["params"][0]
    optimizer = _Watching([*groups, {"params": groups[2]["params"][:1]}])
    assert (
        "parameter 1 of param group 2 (body): it is already in param group 0" in optimizer.refused
    )
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2, 1]


def test_a_parameter_that_an_override_takes_out_of_its_group_may_be_in_another() -> None:
    class Moving(sf.StackelbergAdamW):
        def add_param_group(self, param_group: Any) -> None:
            for group in self.param_groups:
                group["params"] = [
                    p for p in group["params"] if all(p is not new for new in param_group["params"])
                ]
            super().add_param_group(param_group)

    groups = _groups(2)
    groups[1]["params"][1] = groups[0]["params"][0]
    optimizer = Moving(groups)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]


def test_a_group_that_is_appended_past_us_is_known_to_those_after_it() -> None:
    class Appending(sf.StackelbergAdamW):
        def add_param_group(self, param_group: Any) -> None:
            if self.param_groups:
                super().add_param_group(param_group)
            else:
                torch.optim.Optimizer.add_param_group(self, param_group)

    groups = _groups(2)
    assert len(Appending(_groups(2)).param_groups) == 2
    groups[1]["params"][1] = groups[0]["params"][0]
    with pytest.raises(
        ValueError, match=r"parameter 1 of param group 1 .*already in param group 0"
    ):
        Appending(groups)


def test_a_rate_in_a_tensor_that_groups_share_is_copied_at_construction_and_later() -> None:
    lr = torch.tensor(0.1)
    optimizer = sf.StackelbergAdamW(_groups(3), lr=lr)
    optimizer.add_param_group({**_groups(1)[0], "lr": optimizer.param_groups[1]["lr"]})
    rates = [group["lr"] for group in optimizer.param_groups]
    assert len({id(rate) for rate in rates}) == 4
    assert rates[0] is lr
    assert all(isinstance(rate, torch.Tensor) and float(rate) == float(lr) for rate in rates)


@pytest.mark.parametrize("cls", [sf.StackelbergAdamW, torch.optim.AdamW])
def test_a_parameter_twice_in_a_group_is_warned_of_at_construction(cls: Any) -> None:
    groups = _groups(2)
    groups[1]["params"].append(groups[1]["params"][0])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        cls(groups)


@pytest.mark.parametrize("named_first", [False, True])
def test_names_of_some_groups_only_are_refused(named_first: bool) -> None:
    plain, named = _groups(2)
    named["params"] = [(str(k), p) for k, p in enumerate(named["params"])]
    with pytest.raises(ValueError, match=r"param group 1 .*names"):
        sf.StackelbergAdamW([named, plain] if named_first else [plain, named])
