"""One launch of a kernel by hand: its tables, and its buffers between guard zones."""

from __future__ import annotations

import struct

import numpy as np
from audit import buffers_moved, buffers_used

from stackelberg_fused import _cpu
from stackelberg_fused.groups.rules import MIXED_RULES
from stackelberg_fused.layout.tiles import build_tiles
from stackelberg_fused.native.tables import (
    HAS_SUM,
    RECORD,
    ROW,
    STEP_ARGS,
    TILE_ELEMENTS,
    WAITS,
)

SIZES = (0, 1, 15, 16, 17, 63, 4095, 4096, 4097, 9000)
FIELDS = (
    "param",
    "grad",
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "ema",
    "grad_sum",
)
# mean_weight, waits and has_sum of a row: what a record does whose group takes turns
TURNS = {
    "moves": (0, 0, 0),
    "waits": (0, 1, 0),
    "sums": (0.25, 1, 0),
    "mean": (0.25, 0, 1),
    "mean of one": (0.25, 0, 0),
}
GUARD = 8  # NaN on both sides of every buffer

# zeros of both signs, subnormals, what squares to infinity or to zero, infinity, NaN
_SPECIAL = (
    0.0,
    -0.0,
    1e-45,
    -3e-40,
    1.2e-38,
    1e-23,
    -1e20,
    3e38,
    np.inf,
    -np.inf,
    np.nan,
    1.0,
    -0.5,
)
SPECIAL = np.array(_SPECIAL, np.float32)


class Problem:
    """Tables of one launch over every size in SIZES for each rule.

    Args:
        rules: one, or several for a launch that mixes them.
        shifts: by how many floats each field's buffers are off a 16-byte boundary.
        absent: indices of records without a gradient.
        special: values from SPECIAL instead of random ones.
        turns: keys of TURNS, for one row after the other; empty: the launch has no turns.
        more: further fields of STEP_ARGS.

    Attributes:
        present: the rules, as a launch of Triton takes them.
        memory: float32 array that holds all buffers; `inside` says which elements belong to one.
    """

    def __init__(
        self,
        rules: tuple[int, ...],
        shifts: dict[str, int] | None = None,
        absent: tuple[int, ...] = (),
        special: bool = False,
        turns: tuple[str, ...] = (),
        **more: int,
    ) -> None:
        random = np.random.default_rng(1)
        self.rules = np.repeat(rules, len(SIZES))
        kinds = [(turns or ("moves",))[i % len(turns or "1")] for i in range(len(rules))]
        self.turns = np.repeat(kinds, len(SIZES))
        self.more = {"takes_turns": bool(turns), **more}
        self.numel = np.tile(SIZES, len(rules))
        self.records = np.zeros(len(self.numel), RECORD)
        self.records["numel"] = self.numel
        self.records["row"] = np.arange(len(self.numel)) // len(SIZES)
        contents: list[tuple[int, np.ndarray]] = []
        end = 0
        for i, (record, size) in enumerate(zip(self.records, self.numel, strict=True)):
            for field in self._fields(i):
                start = -(-(end + GUARD) // 4) * 4 + (shifts or {}).get(field, 0)
                values = random.standard_normal(size).astype(np.float32)
                if special:
                    values = random.choice(SPECIAL, size)
                with np.errstate(over="ignore"):
                    contents.append((start, values**2 if field.endswith("sq") else values))
                record[field] = 4 * start
                end = start + size + GUARD
        storage = np.full(end + 4, np.nan, np.float32)
        self.memory = storage[-storage.ctypes.data % 16 // 4 :]
        self.inside = np.zeros(len(self.memory), bool)
        for start, values in contents:
            self.memory[start : start + len(values)] = values
            self.inside[start : start + len(values)] = True
        self.move(0, self.memory.ctypes.data)
        self.records["grad"][list(absent)] = 0
        self.rows = self._rows(rules, random)
        for row, kind in zip(self.rows, kinds, strict=True):
            row["mean_weight"], waits, has_sum = TURNS[kind]
            row["turn"] = WAITS * waits + HAS_SUM * has_sum
        self.tiles = build_tiles(self.numel)
        self.records["tiles"] = np.bincount(self.tiles["record"], minlength=len(self.numel))
        self.rule = rules[0] if len(rules) == 1 else MIXED_RULES
        self.present = tuple(sorted(map(int, set(rules))))

    @staticmethod
    def _rows(rules: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
        rows = np.zeros(len(rules), ROW)
        for name in ROW.names[1 : ROW.names.index("mean_weight")]:
            rows[name] = random.uniform(0.001, 0.999, len(rules))
        rows["rule"] = rules
        rows["low"] = random.choice([-np.inf, -0.5], len(rules))
        rows["high"] = random.choice([np.inf, 0.25], len(rules))
        rows["grad_sign"] = random.choice([-1, 1], len(rules))
        for name in ("lerp_weight", "ema_weight"):
            rows[name] *= random.choice([-1, 1], len(rules))
        return rows

    def _fields(self, i: int) -> tuple[str, ...]:
        """Return the fields of a record that hold addresses."""
        # a sum also where gradients are not summed up (any more)
        return (*buffers_used(self.rules[i]), *(("grad_sum",) if self.more["takes_turns"] else ()))

    def move(self, old: int, new: int) -> None:
        """Make the records' addresses, relative to `old`, relative to `new`."""
        for field in FIELDS:
            used = [field in self._fields(i) for i in range(len(self.rules))]
            present = np.array(used) & ((self.records[field] != 0) | (old == 0))
            self.records[field][present] += new - old

    def args(self, records: int = 0, tiles: int = 0, rows: int = 0) -> bytes:
        """STEP_ARGS over all tiles, packed, with the tables at these addresses or where they are."""
        values = dict.fromkeys(STEP_ARGS, 0)
        values["records"] = records or self.records.ctypes.data
        values["tiles"] = tiles or self.tiles.ctypes.data
        values["rows"] = rows or self.rows.ctypes.data
        values["num_tiles"] = len(self.tiles)
        values["rule"] = self.rule
        values.update(self.more)
        return struct.pack("<" + "".join(STEP_ARGS.values()), *values.values())

    def floats(self, i: int) -> int:
        """Return what the launch has to move of each element of a record, in float32."""
        has_grad = bool(self.records["grad"][i])
        mean_weight, waits, has_sum = TURNS[self.turns[i]]
        moved = int(has_grad and bool(self.more.get("zero_grads")))
        if self.more.get("found_inf"):
            return moved
        if waits:
            return moved + 3 * (has_grad and mean_weight != 0)  # gradient and sum read, sum written
        if has_grad or (mean_weight and has_sum):
            # but for the gradient where there is none; the sum is read, and begins anew
            moved += sum(buffers_moved(self.rules[i])) - (not has_grad) + 2 * (mean_weight != 0)
        return moved

    def bytes(self) -> int:
        return sum(4 * self.floats(i) * int(n) for i, n in enumerate(self.numel))

    def bytes_in_full_tiles(self, aligned: np.ndarray | bool = True) -> int:
        """Return those to be moved 16 at a time; without a gradient a kernel may take single elements."""
        full = self.numel // TILE_ELEMENTS * TILE_ELEMENTS * (self.records["grad"] != 0) * aligned
        return sum(4 * self.floats(i) * int(n) for i, n in enumerate(full))

    def updated_by_cpu(self) -> np.ndarray:
        """Return what the CPU kernel makes of the memory, which itself stays as it is."""
        before = self.memory.copy()
        _cpu.step(self.args(), 1)
        updated = self.memory.copy()
        self.memory[:] = before
        return updated

    def check(self, updated: np.ndarray, expected: np.ndarray) -> None:
        """Assert equal bits inside the buffers, where any NaN equals any other, and untouched bits outside."""
        a, b = updated.view(np.int32), expected.view(np.int32)
        outside = ~self.inside
        np.testing.assert_array_equal(a[outside], self.memory.view(np.int32)[outside])
        differ = np.flatnonzero((a != b) & ~(np.isnan(updated) & np.isnan(expected)))
        assert not len(differ), (
            f"{len(differ)} differ: {updated[differ[:4]]}, expected {expected[differ[:4]]}"
        )
