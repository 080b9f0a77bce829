"""Instructions that pass values between the threads of a warp (sections 9.7.9, shfl.sync, and 9.7.13, vote and redux).

All threads of the warp take part here: a narrower mask, or a thread that has ended, is a fault.
"""

from __future__ import annotations

import numpy as np

from .lanes import UNSIGNED, WARP, Fault, Lanes, Mask, Registers, Values
from .operations import Operation, unknown
from .parser import Instruction

EVERY_LANE = np.uint32(0xFFFFFFFF)


class WarpOperation:
    """An instruction at which the threads of a warp wait for each other.

    Attributes:
        instruction: the instruction.
    """

    is_visible = False

    def __init__(self, instruction: Instruction, registers: Registers) -> None:
        self.instruction = instruction
        self._registers = registers
        self._run = {"shfl": self._shuffle, "vote": self._vote, "redux": self._reduce}[
            instruction.base
        ]()

    def run(self, lanes: Lanes, mask: Mask | None) -> None:
        self._run(lanes, mask)

    def _members(self, operand: str, lanes: Lanes, mask: Mask | None) -> None:
        """Check the mask of threads that take part."""
        lanes.demand(self._registers.sources(operand), mask, "the mask of threads")
        members = lanes.full(self._registers.reader(operand, "b32")(lanes))
        if (members != EVERY_LANE)[slice(None) if mask is None else mask].any():
            raise Fault("not all threads of the warp are to take part")

    def _shuffle(self) -> Operation:
        """From another lane, or the thread's own value where that lane is outside of the segment."""
        sync, mode, type_ = self.instruction.modifiers
        if (sync, type_) != ("sync", "b32") or mode not in ("bfly", "down", "up", "idx"):
            raise unknown(self.instruction)
        destination, *operands = self.instruction.operands
        value, is_inside = (destination.split("|") + [""])[:2]
        number = self._registers.number(value)
        predicate = self._registers.number(is_inside) if is_inside else None
        a, b, c = (
            self._registers.reader(o, t)
            for o, t in zip(operands[:3], ("b32", "u32", "u32"), strict=True)
        )
        sources = self._registers.sources(operands[0])

        def run(lanes: Lanes, mask: Mask | None) -> None:
            self._members(operands[3], lanes, mask)
            lanes.demand(self._registers.sources(*operands[1:3]), mask, "the lane to read")
            lane = lanes.lane
            step = (lanes.full(b(lanes)) & np.uint32(31)).astype(np.int64)
            clamp = lanes.full(c(lanes)).astype(np.int64)
            segment = clamp >> 8 & 31
            last = (lane & segment) | (clamp & 31 & ~segment)
            first = lane & segment
            if mode == "bfly":
                source, inside = lane ^ step, (lane ^ step) <= last
            elif mode == "down":
                source, inside = lane + step, lane + step <= last
            elif mode == "up":
                source, inside = lane - step, lane - step >= last
            else:
                source = first | (step & ~segment)
                inside = source <= last
            chosen = np.arange(lanes.count) + np.where(inside, source - lane, 0)
            values, missing = lanes.full(a(lanes)), lanes.undefined_in(sources)
            lanes.write(
                number,
                values[chosen],
                mask,
                None if missing is None else missing[chosen],
            )
            if predicate is not None:
                lanes.write(predicate, inside, mask, None)

        return run

    def _vote(self) -> Operation:
        modifiers = self.instruction.modifiers
        if modifiers not in (
            ("sync", "any", "pred"),
            ("sync", "all", "pred"),
            ("sync", "ballot", "b32"),
        ):
            raise unknown(self.instruction)
        destination, source, members = self.instruction.operands
        negated, source = source.startswith("!"), source.lstrip("!")
        read = self._registers.reader(source, "pred")
        number = self._registers.number(destination)

        def run(lanes: Lanes, mask: Mask | None) -> None:
            self._members(members, lanes, mask)
            lanes.demand(self._registers.sources(source), mask, "a vote")
            votes = (lanes.full(read(lanes)) ^ negated).reshape(-1, WARP)
            if modifiers[1] == "ballot":
                found = (
                    (votes.astype(np.uint64) << np.arange(WARP, dtype=np.uint64))
                    .sum(1)
                    .astype(np.uint32)
                )
            else:
                found = votes.any(1) if modifiers[1] == "any" else votes.all(1)
            lanes.write(number, np.repeat(found, WARP), mask, None)

        return run

    def _reduce(self) -> Operation:
        sync, name, type_ = self.instruction.modifiers
        reduce = {"add": np.add, "min": np.minimum, "max": np.maximum}.get(name)
        if sync != "sync" or reduce is None or type_ not in ("u32", "s32"):
            raise unknown(self.instruction)
        destination, source, members = self.instruction.operands
        read = self._registers.reader(source, type_)
        number = self._registers.number(destination)

        def run(lanes: Lanes, mask: Mask | None) -> None:
            self._members(members, lanes, mask)
            lanes.demand(self._registers.sources(source), mask, "a value to reduce")
            values: Values = lanes.full(read(lanes)).reshape(-1, WARP)
            found = reduce.reduce(values, axis=1, dtype=values.dtype)
            lanes.write(number, np.repeat(found, WARP).view(UNSIGNED[4]), mask, None)

        return run


BASES = ("shfl", "vote", "redux")
