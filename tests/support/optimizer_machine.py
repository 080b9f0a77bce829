"""Random lives of an optimizer as a state machine: whatever a user may do between steps, in any order.

Several sides live the same life, each with another backend or layout; they have to stay equal to the bit. Beside each
parameter that can be computed alone stands a twin (see `twins`). All memory that a launch may write to has guards.
"""

from __future__ import annotations

import copy
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from backends import rounds_fma_twice
from checks import assert_same_bits
from group_strategies import EDITS, OURS, TORCHS, fits
from guarded_memory import GuardedMemory
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tensor_strategies import GRADIENTS, SHAPES, GradientSpec, copy_in_layout, parameters
from torch import Tensor, nn
from twins import BeforeStep, Twin, by_rows, is_alone, torch_computes

import stackelberg_fused as sf

COUNTS: Counter[str] = Counter()  # what was done, over all lives of this process
NUMBERS = st.integers(0, 20)
ROLES = st.sampled_from([None, None, "body", "head"])


@dataclass
class Side:
    """One optimizer of a life."""

    name: str
    backend: Any
    flatten: bool
    optimizer: Any = None

    def rows(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, p) for group in self.optimizer.param_groups for p in group["params"]]

    def build(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer = sf.StackelbergAdamW(groups, backend=self.backend, flatten=self.flatten)


class OptimizerMachine(RuleBasedStateMachine):
    """A life. A subclass says which backends live it, and what stands beside their parameters."""

    dtypes: ClassVar[list[torch.dtype]]
    shapes: ClassVar[list[tuple[int, ...]]] = SHAPES
    twins_of_torch: ClassVar[bool] = False
    compares_with_torch: ClassVar[bool] = True  # each step, from the same bits

    def make_sides(self) -> list[Side]:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuardedMemory()
        self.arenas = self.memory.around_arenas()
        self.arenas.__enter__()
        self.sides = self.make_sides()
        self.twins: list[Twin | None] = []
        self.clock = 0
        self.saved: Any = None
        COUNTS["lives"] += 1

    def teardown(self) -> None:
        self.arenas.__exit__(None, None, None)

    # what groups are made of

    def _group(self, data: Any) -> list[dict[str, Any]] | None:
        """A new group for each side, equal in all; None where its settings do not go together."""
        specs = data.draw(st.lists(parameters(self.dtypes, self.shapes), min_size=1, max_size=3))
        settings = {**data.draw(TORCHS), **data.draw(OURS)}
        if not fits(settings, {spec.dtype for spec in specs}, not self.twins_of_torch):
            return None
        role = data.draw(st.sampled_from(["body", "head"]))
        groups: list[dict[str, Any]] = [
            {"role": role, **settings, "params": []} for _ in self.sides
        ]
        for spec in specs:
            self.clock += 1
            for group in groups:
                group["params"].append(spec.make(self.memory, self.clock))
            self.twins.append(self._twin(groups[0]["params"][-1], settings))
        return groups

    def _twin(self, param: Tensor, settings: dict[str, Any]) -> Twin | None:
        if self.twins_of_torch:
            has_twin = torch_computes(settings, param.dtype)
        else:
            has_twin = is_alone(settings)
        return Twin(param, settings, self.twins_of_torch) if has_twin else None

    @initialize(data=st.data())
    def construct(self, data: Any) -> None:
        groups = [self._group(data) for _ in range(data.draw(st.integers(1, 3)))]
        groups = [group for group in groups if group is not None] or [self._plain_group()]
        for number, side in enumerate(self.sides):
            side.build([group[number] for group in groups])

    def _plain_group(self) -> list[dict[str, Any]]:
        self.clock += 1
        groups = [
            {
                "params": [nn.Parameter(torch.ones(17, dtype=self.dtypes[0]))],
                "rule": "adamw",
                "lr": 0.1,
            }
            for _ in self.sides
        ]
        self.twins.append(self._twin(groups[0]["params"][0], groups[0]))
        return groups

    # what a user does

    @rule(data=st.data())
    def add_param_group(self, data: Any) -> None:
        groups = self._group(data)
        if groups is not None:
            for side, group in zip(self.sides, groups, strict=True):
                side.optimizer.add_param_group(group)
            self.saved = None

    @rule(
        role=ROLES,
        mask=st.integers(1, 2**9 - 1),
        grads=st.lists(GRADIENTS, min_size=3, max_size=3),
        zero_grad=st.booleans(),
    )
    def step(self, role: str | None, mask: int, grads: list[Any], zero_grad: bool) -> None:
        self._step(role, mask, grads, zero_grad)

    @rule()
    def step_of_all(self) -> None:
        self._step(None, 2**9 - 1, [GradientSpec("contiguous", 0)] * 3, False)

    def _step(self, role: str | None, mask: int, grads: list[Any], zero_grad: bool) -> None:
        self.clock += 1
        self.memory.check()
        exists = role in (None, *(g["role"] for g in self.sides[0].optimizer.param_groups))
        moved = []
        for number, rows in enumerate(zip(*(side.rows() for side in self.sides), strict=True)):
            moves = bool(mask >> (number % 9) & 1)
            for _, p in rows:
                p.grad = None
                if moves:
                    p.requires_grad_(True)
                    made = grads[number % 3].make(self.memory, p, 97 * self.clock + number)
                    p.grad = made
            if moves and role in (None, rows[0][0]["role"]):
                moved.append(number)
        if not exists:
            return
        rows = self.sides[0].rows()
        befores = {n: self._before(*rows[n]) for n in moved} if self.compares_with_torch else {}
        given = {n: copy_in_layout(rows[n][1].grad) for n in moved}
        for side in self.sides:
            side.optimizer.step(role=role, zero_grad=zero_grad)
        COUNTS["steps"] += len(self.sides)
        for (group, _), twin in zip(rows, self.twins, strict=True):
            # any step forgets the averages that were turned off, a twin's own alone
            if twin is not None and group.get("ema_decay") is None:
                twin.optimizer.state[twin.param].pop("ema", None)
        for number in moved:
            (_, p), twin = rows[number], self.twins[number]
            assert (p.grad is None) is zero_grad
            if twin is not None:
                twin.step(given[number])
            before = befores.get(number)
            if before is not None:
                state, exact = self.sides[0].optimizer.state[p], not rounds_fma_twice()
                before.check(p, state, exact, f"parameter {number} beside torch")
                COUNTS["steps of a parameter beside torch's"] += 1

    def _before(self, group: dict[str, Any], p: Tensor) -> BeforeStep | None:
        if p.dtype is not torch.float32 or not torch_computes(group, p.dtype):
            return None
        state = self.sides[0].optimizer.state.get(p, {})
        if group.get("amsgrad") and "exp_avg" in state and "max_exp_avg_sq" not in state:
            return None
        return BeforeStep(p, state, group)

    @rule(number=NUMBERS, settings=EDITS)
    def edit(self, number: int, settings: dict[str, Any]) -> None:
        rows = [side.rows() for side in self.sides]
        number %= len(rows[0])
        group = rows[0][number][0]
        dtypes = {p.dtype for p in group["params"]}
        edited = {**group, **settings}
        if any(name not in group for name in settings):
            return
        if not fits(edited, dtypes, not self.twins_of_torch):
            return
        for k, twin in enumerate(self.twins):
            if rows[0][k][0] is group and twin is not None:
                if twin.follows(edited):
                    twin.edit(settings)
                else:
                    self.twins[k] = None
        for of_side in rows:
            of_side[number][0].update(settings)

    @rule(to_none=st.booleans(), role=ROLES)
    def zero_grad(self, to_none: bool, role: str | None) -> None:
        for side in self.sides:
            side.optimizer.zero_grad(to_none, role=role)
            for group, p in side.rows():
                if p.grad is not None and role in (None, group["role"]):
                    assert not to_none
                    assert not p.grad.any()

    @rule(how=st.sampled_from(["own", "new", "copy", "save", "go back"]))
    def save_or_load(self, how: str) -> None:
        actions = {
            "own": self._load_own_state,
            "new": self._load_into_a_new_optimizer,
            "copy": self._deep_copy,
            "save": self._save,
            "go back": self._go_back,
        }
        actions[how]()

    def _load_own_state(self) -> None:
        for side in self.sides:
            side.optimizer.load_state_dict(copy.deepcopy(side.optimizer.state_dict()))

    def _load_into_a_new_optimizer(self) -> None:
        for side in self.sides:
            file = io.BytesIO()
            torch.save(side.optimizer.state_dict(), file)
            file.seek(0)
            groups = [{**group, "lr": 0.123} for group in side.optimizer.param_groups]
            side.build(groups)
            side.optimizer.load_state_dict(torch.load(file, weights_only=True))

    def _deep_copy(self) -> None:
        for side in self.sides:
            side.optimizer = copy.deepcopy(side.optimizer)

    def _save(self) -> None:
        self.saved = (
            [
                (
                    copy.deepcopy(side.optimizer.state_dict()),
                    [p.detach().clone() for _, p in side.rows()],
                )
                for side in self.sides
            ],
            [twin and twin.save() for twin in self.twins],
        )

    def _go_back(self) -> None:
        if self.saved is None:
            return
        sides, twins = self.saved
        for side, (state, values) in zip(self.sides, sides, strict=True):
            side.optimizer.load_state_dict(copy.deepcopy(state))
            for (_, p), value in zip(side.rows(), values, strict=True):
                p.data.copy_(value)
        for number, saved in enumerate(twins):
            twin = self.twins[number]
            if saved is None or twin is None:
                self.twins[number] = None
            else:
                twin.load(saved)

    @rule(
        number=NUMBERS,
        what=st.sampled_from(["freeze", "train", "clear", "forget", "rebind", "replace"]),
    )
    def change_by_hand(self, number: int, what: str) -> None:
        number %= len(self.twins)
        for side in self.sides:
            group, p = side.rows()[number]
            if what in ("freeze", "train"):
                p.requires_grad_(what == "train")
            elif what == "clear":
                side.optimizer.state.clear()
            elif what == "forget":
                side.optimizer.state[p] = {}
            elif what == "rebind":
                p.data = p.data.clone()
            elif what == "replace":
                _replace(side.optimizer, group, p)
        forgotten = {"clear": self.twins, "forget": [self.twins[number]]}
        for twin in forgotten.get(what, []):
            if twin is not None:
                twin.optimizer.state.clear()

    @rule(number=NUMBERS, numbers=st.lists(st.integers(0, 30), max_size=7))
    def grow_or_shrink(self, number: int, numbers: list[int]) -> None:
        number %= len(self.twins)
        old = self.sides[0].rows()[number][1]
        if old.dim() == 0:
            return
        rows = [n % (len(old) + 1) - 1 for n in numbers]
        for side in self.sides:
            _, p = side.rows()[number]
            new = nn.Parameter(by_rows(p.detach(), rows), requires_grad=p.requires_grad)
            side.optimizer.replace(p, new, rows)
        twin = self.twins[number]
        if twin is not None:
            twin.replace(rows)
        self.saved = None

    # what has to hold at any time

    @invariant()
    def sides_are_equal(self) -> None:
        COUNTS["comparisons"] += 1
        first = self.sides[0]
        if first.optimizer is None:
            return
        self.memory.check()
        for number, (_, p) in enumerate(first.rows()):
            state = first.optimizer.state.get(p, {})
            for side in self.sides[1:]:
                q = side.rows()[number][1]
                what = f"parameter {number} of {side.name} beside {first.name}"
                assert_same_bits(q, p, what)
                other = side.optimizer.state.get(q, {})
                assert sorted(other) == sorted(state), what
                for name, value in state.items():
                    assert_same_bits(
                        torch.as_tensor(other[name]), torch.as_tensor(value), f"{what} {name}"
                    )
            twin = self.twins[number]
            if twin is not None:
                twin.check(p, state, f"parameter {number} beside its twin")


def _replace(optimizer: Any, group: dict[str, Any], old: Tensor) -> None:
    """Have a parameter of another identity take over place and state."""
    new = nn.Parameter(old.detach().clone(), requires_grad=old.requires_grad)
    group["params"][next(i for i, p in enumerate(group["params"]) if p is old)] = new
    if old in optimizer.state:
        optimizer.state[new] = optimizer.state.pop(old)


class ReferenceMachine(OptimizerMachine):
    """`reference`, in arenas and not, beside torch's own optimizers."""

    dtypes: ClassVar = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    twins_of_torch = True
    compares_with_torch = False

    def make_sides(self) -> list[Side]:
        return [Side(f"reference, flatten={f}", "reference", f) for f in (False, True)]


class NativeMachine(OptimizerMachine):
    """`cpu`, in arenas and not, and the CUDA kernels on the host where they can be built."""

    dtypes: ClassVar = [torch.float32, torch.float32, torch.bfloat16, torch.float16]

    def make_sides(self) -> list[Side]:
        from host_cuda.backend import HostCudaBackend

        sides = [Side(f"cpu, flatten={f}", "cpu", f) for f in (False, True)]
        if HostCudaBackend.status().available:
            sides.append(Side("cuda on the host", HostCudaBackend(order="reverse"), True))
        return sides


class TritonMachine(OptimizerMachine):
    """Interpreted `triton`, in arenas and not."""

    dtypes: ClassVar = NativeMachine.dtypes
    shapes: ClassVar = [(), (0,), (3,), (17,), (5, 7), (2, 3, 4, 4)]

    def make_sides(self) -> list[Side]:
        return [Side(f"triton, flatten={f}", "triton", f) for f in (False, True)]

    def _twin(self, param: Tensor, settings: dict[str, Any]) -> Twin | None:
        return None  # the interpreter may round otherwise than `cpu`


MACHINES = {"reference": ReferenceMachine, "native": NativeMachine, "triton": TritonMachine}
