"""Groups in several tables wait alike: random programs beside a model of their turns in plain numbers."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
import torch
from backends import by_backend, chosen
from hypothesis import strategies as st
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

# what lies in a table of its own, at least where dtypes and schemes do not mix: dtype and dimensions (with 8-bit state,
# vectors keep float32)
KINDS = [(torch.float32, 1), (torch.float16, 1), (torch.float32, 2)]
PARAM = st.tuples(st.sampled_from(range(len(KINDS))), st.booleans())  # kind, frozen at first
GROUP = st.tuples(
    st.sampled_from(["body", "head"]),
    st.sampled_from([1, 2, 4]),
    st.lists(PARAM, min_size=1, max_size=3),
)
NUMBER = st.integers(0, 8)
STEP = st.tuples(
    st.just("step"), st.sampled_from([None, None, "body", "head"]), st.integers(0, 511)
)
ACTION = st.one_of(
    STEP,
    STEP,
    st.tuples(st.sampled_from(["freeze", "wake", "forget", "forget group"]), NUMBER, st.none()),
    st.tuples(st.just("edit"), NUMBER, st.sampled_from([1, 2, 4])),
    st.tuples(st.sampled_from(["clear", "rebuild", "reload"]), NUMBER, st.none()),
)


@dataclass(eq=False)
class Member:
    """One parameter of the model: its weight, and what its state says of its turn."""

    trained: bool
    weight: float = 0.0
    counted: bool = False
    total: float | None = None  # of gradients that wait

    def forget(self) -> None:
        self.counted, self.total = False, None


@dataclass(eq=False)
class ModelGroup:
    role: str
    every: int
    mean: bool
    members: list[Member]
    accepted: int = 0
    waited: int = 0

    def accept(self) -> None:
        """An edit begins a round."""
        if self.accepted != self.every:
            self.accepted, self.waited = self.every, 0
            for member in self.members:
                member.total = None

    def forgot(self) -> None:
        if not any(member.counted for member in self.members):
            self.waited = 0

    def step(self, grads: list[float | None]) -> None:
        if self.every > 1 and not any(m.counted or m.trained for m in self.members):
            return
        if self.every > 1:
            self.waited = (self.waited + 1) % self.every
            for member in self.members:
                member.counted |= member.trained
        for member, grad in zip(self.members, grads, strict=True):
            if self.mean and self.every > 1:
                if grad is not None:
                    member.total = (member.total or 0.0) + grad
                if self.waited == 0 and member.total is not None:
                    member.weight -= member.total / self.every
                    member.total = None
            elif self.waited == 0 and grad is not None:
                member.weight -= grad


@dataclass(eq=False)
class Program:
    """An optimizer of groups in several tables, and the model of it."""

    optimizer: Any
    groups: list[ModelGroup]
    clock: int = 0
    log: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, backend: str, groups: list[tuple], mean: bool, capturable: bool) -> Program:
        instance, device = chosen(backend)
        dicts = []
        for role, every, members in groups:
            params = [
                nn.Parameter(
                    torch.zeros((1,) * KINDS[kind][1], dtype=KINDS[kind][0], device=device),
                    requires_grad=not frozen,
                )
                for kind, frozen in members
            ]
            dicts.append({"params": params, "role": role, "update_every": every})
        optimizer = sf.StackelbergSGD(
            [{**group, "capturable": capturable} for group in dicts],
            lr=1.0,
            head_lr_ratio=1.0,
            update_every_grads="mean" if mean else "latest",
            state_dtype="8bit",
            backend=instance,
        )
        model = [
            ModelGroup(role, every, mean, [Member(not frozen) for _, frozen in members], every)
            for role, every, members in groups
        ]
        return cls(optimizer, model)

    def rows(self) -> list[tuple[ModelGroup, Member, nn.Parameter]]:
        return [
            (group, member, param)
            for group, own in zip(self.groups, self.optimizer.param_groups, strict=True)
            for member, param in zip(group.members, own["params"], strict=True)
        ]

    def step(self, role: str | None, mask: int) -> None:
        if role not in (None, *(group.role for group in self.groups)):
            return
        self.clock += 1
        grads: dict[int, float | None] = {}
        counted = False
        for k, (group, member, param) in enumerate(self.rows()):
            has_grad = member.trained and bool(mask >> k & 1)
            value = float((self.clock + k) % 3 + 1)
            grads[id(member)] = value if has_grad else None
            param.grad = torch.full_like(param, value) if has_grad else None
            counted |= has_grad and role in (None, group.role)
        self.optimizer.step(role=role)
        for group in self.groups:
            group.accept()
            if counted and role in (None, group.role):
                group.step([grads[id(member)] for member in group.members])

    def act(self, what: str, first: Any, second: Any) -> None:
        if what == "step":
            self.step(first, second)
            return
        rows = self.rows()
        group, member, param = rows[first % len(rows)]
        own = self.optimizer.param_groups[self.groups.index(group)]
        if what in ("freeze", "wake"):
            member.trained = what == "wake"
            param.requires_grad_(member.trained)
            param.grad = None
        elif what == "forget":
            self.optimizer.state.pop(param, None)
            member.forget()
        elif what == "forget group":
            for each, p in zip(group.members, own["params"], strict=True):
                self.optimizer.state.pop(p, None)
                each.forget()
        elif what == "edit":
            own["update_every"] = group.every = second
        elif what == "clear":
            self.optimizer.state.clear()
            for _, each, _ in rows:
                each.forget()
        elif what == "rebuild":
            own["params"] = list(own["params"])
        elif what == "reload":
            self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
            for each_group in self.groups:
                each_group.accept()
        for each_group in self.groups:
            each_group.forgot()

    def check(self) -> None:
        for k, (_, member, param) in enumerate(self.rows()):
            assert param.flatten().tolist() == [member.weight], f"parameter {k} after {self.log}"


@pytest.mark.parametrize("capturable", [False, True])
@by_backend
@hypothesis.given(
    st.lists(GROUP, min_size=1, max_size=3), st.booleans(), st.lists(ACTION, max_size=14)
)
@hypothesis.settings(max_examples=40 if is_interpreting() else 250)
def test_a_random_program(
    backend: str, capturable: bool, groups: list[tuple], mean: bool, actions: list[tuple]
) -> None:
    program = Program.of(backend, groups, mean, capturable)
    for action in actions:
        program.log.append(action)
        program.act(*action)
        program.check()
    for _ in range(4):
        program.step(None, 511)
        program.check()


@by_backend
def test_a_parameter_of_another_dtype_that_wakes_up_moves_with_its_group(backend: str) -> None:
    instance, device = chosen(backend)
    trained = nn.Parameter(torch.ones(3, device=device))
    frozen = nn.Parameter(torch.ones(3, dtype=torch.float16, device=device), requires_grad=False)
    ours = sf.StackelbergSGD([trained, frozen], lr=0.5, update_every=2, backend=instance)
    for params in ([trained], [trained, frozen]):
        for p in params:
            p.requires_grad_(True).grad = torch.ones_like(p)
        ours.step()
    assert (trained.tolist(), frozen.tolist()) == ([0.5] * 3, [0.5] * 3)


def test_a_frozen_parameter_that_waited_needs_no_backend_that_can_update_it() -> None:
    trained, frozen = (
        nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in (torch.float32, torch.float64)
    )
    both = sf.StackelbergSGD([trained, frozen], update_every=2, backend="reference")
    trained.grad, frozen.grad = torch.ones_like(trained), torch.ones_like(frozen)
    both.step()
    frozen.requires_grad_(False).grad = None
    ours = sf.StackelbergSGD([trained, frozen], update_every=2, backend="cpu")
    ours.load_state_dict(both.state_dict())
    ours.step()
    assert ours.backend == "cpu"
