"""Random lives of an optimizer (see `optimizer_machine`); `make fuzz` runs more of them."""

from __future__ import annotations

import ctypes
from typing import Any, ClassVar

import hypothesis
import pytest
from hypothesis.stateful import run_state_machine_as_test
from optimizer_machine import MACHINES

from stackelberg_fused.backends.triton import is_interpreting

LIVES = {"reference": 60, "native": 60, "triton": 8}
HERE = ["triton"] if is_interpreting() else ["reference", "native"]


@pytest.mark.filterwarnings("ignore:.*learning rate")
@pytest.mark.parametrize("machine", HERE)
def test_random_lives(machine: str) -> None:
    settings = hypothesis.settings(max_examples=LIVES[machine], stateful_step_count=20)
    run_state_machine_as_test(MACHINES[machine], settings=settings)


class _Faulty(MACHINES["native"]):
    """A life in which one fault is made after each step."""

    fault = "none"

    def _step(self, *arguments: Any) -> None:
        super()._step(*arguments)
        side = self.sides[0]
        moved = [p for _, p in side.rows() if side.optimizer.state.get(p) and p.numel()]
        if not moved:
            return
        if self.fault == "past the end":
            end = max(
                p.data_ptr() + p.numel() * p.element_size() for p in moved if p.is_contiguous()
            )
            ctypes.c_uint8.from_address(end).value ^= 1
        elif self.fault == "one side":
            moved[0].data.view(-1)[0] += 1
        elif self.fault == "all sides":
            for each in self.sides:
                for _, p in each.rows():
                    p.data.mul_(1.5)


@pytest.mark.skipif(is_interpreting(), reason="once is enough")
@pytest.mark.filterwarnings("ignore:.*learning rate")
@pytest.mark.parametrize(
    "fault, found",
    [
        ("past the end", "written outside of its elements"),
        ("one side", "beside cpu"),
        ("all sides", "beside its twin"),
    ],
)
def test_a_planted_fault_is_found(fault: str, found: str) -> None:
    class Planted(_Faulty):
        shapes: ClassVar = [(17,)]

    Planted.fault = fault
    settings = hypothesis.settings(
        max_examples=20,
        stateful_step_count=5,
        phases=[hypothesis.Phase.generate],
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError, match=found):
        run_state_machine_as_test(Planted, settings=settings)
