"""Loads, stores and atomic operations (sections 9.7.9 and 9.7.13)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .lanes import UNSIGNED, Fault, Lanes, Mask, Registers, Values, dtype_of
from .memory import Addresses, Region, check_alignment
from .operations import unknown
from .parser import SIZES, Instruction, split

if TYPE_CHECKING:
    from .launch import Launch

_ADDRESS = re.compile(r"\[\s*([^+\s\]]+)\s*(?:\+\s*(-?\d+))?\s*\]")
# modifiers that neither change a value nor order anything (section 9.7.9.1); not nc, which may miss what is stored
CACHING = ("ca", "cg", "cs", "lu", "cv", "wb", "wt") + tuple(
    f"L1::{priority}"
    for priority in ("evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate")
)
VECTORS = ("v2", "v4", "v8")
ORDERS = ("relaxed", "acquire", "release", "acq_rel", "volatile", "weak")
SCOPES = ("cta", "cluster", "gpu", "sys")


@dataclass(frozen=True)
class Access:
    """What the checks are told about one instruction that some lanes execute together.

    Attributes:
        instruction: the instruction.
        kind: "load", "store" or "atomic".
        addresses: one for each lane.
        size: bytes of each.
        lanes: the lanes' numbers.
        changes: for a store, whether it changes what is there, by lane.
        order: "relaxed", "acq_rel", ...; "weak" of usual loads and stores.
        scope: of the order.
    """

    instruction: Instruction
    kind: str
    addresses: Addresses
    size: int
    lanes: NDArray[np.intp]
    changes: NDArray[np.bool_] | None = None
    order: str = "weak"
    scope: str = "gpu"


class MemoryOperation:
    """An instruction that reads or writes memory.

    Attributes:
        is_visible: other blocks could notice when it happens, so that blocks may change over before it.
        is_shared: other warps of the block could.
    """

    def __init__(self, instruction: Instruction, registers: Registers) -> None:
        self.instruction = instruction
        # the shared memory of the block's own part of a cluster is that of the block
        self._modifiers = tuple(
            "shared" if m == "shared::cta" else m for m in instruction.modifiers
        )
        self._type = self._modifiers[-1]
        self._space = next((m for m in self._modifiers if m in ("global", "shared", "param")), None)
        if self._space is None:
            raise unknown(instruction)  # generic addresses, local and constant memory
        self.order = next((m for m in self._modifiers if m in ORDERS), "weak")
        self.scope = next(
            (m for m in self._modifiers if m in SCOPES),
            "sys" if self.order == "volatile" else "gpu",
        )
        length = next((int(m[1]) for m in self._modifiers if m in VECTORS), 1)
        self._element = SIZES[self._type]
        self.size = self._element * length
        known = {
            *VECTORS,
            self._space,
            self._type,
            *CACHING,
            *ORDERS,
            *SCOPES,
            *self._own_modifiers(),
        }
        if not set(self._modifiers) <= known:
            raise unknown(instruction)
        self.is_visible, self.is_shared = self._space == "global", self._space == "shared"
        self._registers = registers
        self._decode(length)

    def _own_modifiers(self) -> tuple[str, ...]:
        return ()

    def _decode(self, length: int) -> None:
        raise NotImplementedError

    def _read_address(self, operand: str) -> None:
        found = _ADDRESS.fullmatch(operand)
        if not found:
            raise unknown(self.instruction)
        # of an address of 64 bits in shared memory the upper half would have to be checked, too
        self._base = self._registers.reader(found[1], "u64" if self._space != "shared" else "u32")
        if self._space == "shared" and self._is_wide(found[1]):
            raise unknown(self.instruction)
        self._base_registers = self._registers.sources(found[1])
        self._offset = int(found[2] or 0)

    def _is_wide(self, operand: str) -> bool:
        return any(self._registers.sizes[n] > 4 for n in self._registers.sources(operand))

    def _vector(self, operand: str, length: int) -> list[str]:
        parts = split(operand.strip("{} ")) if operand.startswith("{") else [operand]
        if len(parts) != length:
            raise unknown(self.instruction)
        return parts

    def _reach(
        self, launch: Launch, lanes: Lanes, mask: Mask | None
    ) -> tuple[NDArray[np.intp], Addresses, list[tuple[Region, NDArray[np.intp] | None]]]:
        """The lanes that take part, their addresses, and the regions where these lie."""
        lanes.demand(self._base_registers, mask, "the address")
        active = np.arange(lanes.count) if mask is None else np.flatnonzero(mask)
        base = lanes.full(self._base(lanes))[active]
        if self._space == "shared":
            offsets = base + np.uint32(self._offset % 2**32)
            check_alignment(offsets.astype(np.uint64), self.size)
            addresses = launch.shared.addresses(offsets, lanes.block[active], self.size)
            return active, addresses, [(launch.shared.region, None)]
        addresses = base + np.uint64(self._offset % 2**64)
        check_alignment(addresses, self.size)
        return active, addresses, launch.memory.find(addresses, self.size)

    def _access(
        self, kind: str, addresses: Addresses, active: NDArray[np.intp], changes: Mask | None = None
    ) -> Access:
        return Access(
            self.instruction, kind, addresses, self.size, active, changes, self.order, self.scope
        )

    def _elements(self, region: Region, addresses: Addresses) -> tuple[Values, NDArray[np.int64]]:
        """The region as elements of the access's size, and the indices of the first ones."""
        offsets = addresses.astype(np.int64) - region.address
        skipped = region.address % self._element  # a region may begin between elements
        if skipped or len(region.data) % self._element:
            start = -skipped % self._element
            data = region.data[
                start : start + (len(region.data) - start) // self._element * self._element
            ]
            return data.view(UNSIGNED[self._element]), (offsets - start) // self._element
        return region.data.view(UNSIGNED[self._element]), offsets // self._element

    def _unwritten(self, region: Region, addresses: Addresses, k: int) -> Mask | None:
        """Which elements k of vectors at these addresses nothing has written; None: none."""
        if region.written is None:
            return None
        first = addresses.astype(np.int64) - region.address + k * self._element
        written = region.written[first[:, None] + np.arange(self._element)].all(1)
        return None if written.all() else ~written


class Load(MemoryOperation):
    """ld: a narrower type is extended to the register (section 9.7.9, ld)."""

    def _decode(self, length: int) -> None:
        destination, address = self.instruction.operands
        self._destinations = [
            self._registers.number(name) for name in self._vector(destination, length)
        ]
        if any(self._registers.sizes[number] < self._element for number in self._destinations):
            raise unknown(self.instruction)
        self._signed = self._type[0] == "s"
        if self._space == "param":
            self._read_parameter_address(address)
        else:
            self._read_address(address)

    def _read_parameter_address(self, operand: str) -> None:
        self._read_address(operand)
        self.is_visible = False

    def run(self, launch: Launch, lanes: Lanes, mask: Mask | None) -> None:
        if self._space == "param":
            return self._load_parameter(launch, lanes, mask)
        active, addresses, places = self._reach(launch, lanes, mask)
        for k, destination in enumerate(self._destinations):
            dtype = UNSIGNED[self._registers.sizes[destination]]
            found = np.zeros(lanes.count, dtype)
            missing: Mask | None = None
            for region, inside in places:
                at = addresses if inside is None else addresses[inside]
                to = active if inside is None else active[inside]
                elements, indices = self._elements(region, at)
                found[to] = self._extended(elements[indices + k], dtype)
                unwritten = self._unwritten(region, at, k)
                if unwritten is not None:
                    missing = np.zeros(lanes.count, np.bool_) if missing is None else missing
                    missing[to] = unwritten
            lanes.write(destination, found, mask, missing)
        launch.observe(self._access("load", addresses, active), lanes)
        return None

    def _extended(self, values: Values, dtype: np.dtype) -> Values:
        if self._signed:
            return values.view(dtype_of(self._type)).astype(f"i{dtype.itemsize}").view(dtype)
        return values.astype(dtype, copy=False)

    def _load_parameter(self, launch: Launch, lanes: Lanes, mask: Mask | None) -> None:
        """Parameters are the same for all threads (section 5.1.6); so are the addresses that kernels compute."""
        lanes.demand(self._base_registers, mask, "the address")
        bases = np.unique(lanes.full(self._base(lanes))[slice(None) if mask is None else mask])
        if len(bases) != 1:
            raise Fault("threads load different parameters")
        offset = int(bases[0].view(np.int64)) + self._offset
        if offset % self.size or not 0 <= offset <= len(launch.parameters) - self.size:
            raise Fault(f"parameter bytes {offset} to {offset + self.size}")
        for k, destination in enumerate(self._destinations):
            dtype = UNSIGNED[self._registers.sizes[destination]]
            start = offset + k * self._element
            value = np.frombuffer(launch.parameters, UNSIGNED[self._element], 1, start)
            lanes.write(destination, self._extended(value, dtype)[0], mask, None)


class Store(MemoryOperation):
    """st: of a wider register the lower bits (section 9.7.9, st)."""

    def _decode(self, length: int) -> None:
        address, values = self.instruction.operands
        if self._space == "param":
            raise unknown(self.instruction)
        self._read_address(address)
        bits = f"b{8 * self._element}"
        parts = self._vector(values, length)
        self._values = [self._registers.reader(part, bits) for part in parts]
        self._sources = [self._registers.sources(part) for part in parts]

    def run(self, launch: Launch, lanes: Lanes, mask: Mask | None) -> None:
        active, addresses, places = self._reach(launch, lanes, mask)
        values = [lanes.full(read(lanes)) for read in self._values]
        missing = [lanes.undefined_in(sources) for sources in self._sources]
        changes = np.zeros(len(active), np.bool_)
        for region, inside in places:
            if not region.is_writable:
                raise Fault(f"stores to {region}, which it may only read")
            here = slice(None) if inside is None else inside
            elements, indices = self._elements(region, addresses[here])
            for k, value in enumerate(values):
                stored = value[active[here]]
                changes[here] |= _changes(elements, indices + k, stored)
                elements[indices + k] = stored
                is_missing = None if missing[k] is None else missing[k][active[here]]
                if region.written is not None or is_missing is not None:
                    self._mark(region, addresses[here], k, is_missing)
        launch.observe(self._access("store", addresses, active, changes), lanes)

    def _mark(self, region: Region, addresses: Addresses, k: int, missing: Mask | None) -> None:
        """Note that elements k of vectors hold something now. What is undefined stays so in memory."""
        first = addresses.astype(np.int64) - region.address + k * self._element
        every_byte = first[:, None] + np.arange(self._element)
        if region.written is None:
            if not missing.any():
                return
            region.written = np.ones(len(region.data), np.bool_)
        region.written[every_byte] = True if missing is None else ~missing[:, None]
        if region.spoiled is None:
            if missing is None or not missing.any():
                return
            region.spoiled = np.zeros(len(region.data), np.bool_)
        region.spoiled[every_byte] = False if missing is None else missing[:, None]
        if missing is not None and missing.any():
            region.spoiled_by = self.instruction


def _changes(elements: Values, indices: NDArray[np.int64], stored: Values) -> Mask:
    """Which lanes store something else than what is there, which an earlier lane may have stored."""
    changes = elements[indices] != stored
    order = np.argsort(indices, kind="stable")
    again = np.flatnonzero(indices[order][1:] == indices[order][:-1])
    changes[order[again + 1]] = stored[order[again + 1]] != stored[order[again]]
    return changes


class Atomic(MemoryOperation):
    """atom.add, one lane after another, and red.add, which gives nothing (section 9.7.13, atom and red)."""

    def _own_modifiers(self) -> tuple[str, ...]:
        return ("add",)

    def _decode(self, length: int) -> None:
        if (
            "add" not in self._modifiers
            or length > 1
            or self._space != "global"
            or self._type[0] not in "us"
        ):
            raise unknown(self.instruction)
        if self.order == "weak":
            self.order = "relaxed"  # what it is without a modifier
        is_reduction = self.instruction.base == "red"
        if is_reduction and self.order not in ("relaxed", "release"):
            raise unknown(self.instruction)
        operands = ("_", *self.instruction.operands) if is_reduction else self.instruction.operands
        destination, address, value = operands
        self._destination = None if destination == "_" else self._registers.number(destination)
        self._read_address(address)
        self._value = self._registers.reader(value, self._type)
        self._sources = self._registers.sources(value)

    def run(self, launch: Launch, lanes: Lanes, mask: Mask | None) -> None:
        active, addresses, places = self._reach(launch, lanes, mask)
        lanes.demand(self._sources, mask, "what is added")
        added = lanes.full(self._value(lanes)).view(UNSIGNED[self._element])
        before = np.zeros(lanes.count, UNSIGNED[self._element])
        for region, inside in places:
            if not region.is_writable:
                raise Fault(f"stores to {region}, which it may only read")
            here = np.arange(len(active)) if inside is None else inside
            if self._unwritten(region, addresses[here], 0) is not None:
                raise Fault(f"adds to bytes of {region} that nothing has written")
            elements, indices = self._elements(region, addresses[here])
            for lane, index in zip(active[here], indices, strict=True):
                before[lane] = elements[index]
                elements[index] += added[lane]
        if self._destination is not None:
            lanes.write(self._destination, before, mask, None)
        launch.observe(self._access("atomic", addresses, active), lanes)


OPERATIONS = {"ld": Load, "st": Store, "atom": Atomic, "red": Atomic}
