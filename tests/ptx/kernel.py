"""A kernel whose instructions are decoded, once for all launches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from . import arithmetic, bits, comparisons, conversions  # noqa: F401  they register their decoders
from .accesses import OPERATIONS, MemoryOperation
from .approximate import Unit, reciprocal, reciprocal_root
from .floating import canonical
from .lanes import Registers, dtype_of
from .operations import DECODERS, Operation, Result, decodes, readers, unknown
from .parser import Instruction, KernelText, NotUnderstood
from .warp import BASES, WarpOperation


@dataclass(frozen=True)
class Branch:
    """bra and brx.idx (section 9.7.12): where to go on, one of several by the index in a register."""

    targets: tuple[int, ...]
    index: str | None = None


@dataclass(frozen=True)
class Exit:
    """ret or exit of a kernel."""


@dataclass(frozen=True)
class Barrier:
    """bar.sync or barrier.sync: all threads of a block wait for each other (section 9.7.13).

    Attributes:
        number: of the barrier.
        is_aligned: all threads of a warp have to execute the same instruction.
    """

    number: int
    is_aligned: bool = True


@dataclass(frozen=True)
class WarpBarrier:
    """bar.warp.sync of whole warps: threads wait for each other, and it orders their accesses (section 9.7.13)."""


@dataclass(frozen=True)
class Fence:
    """membar and fence (section 9.7.13). membar.gl is fence.sc.gpu on sm_70 and newer.

    Attributes:
        is_sequential: it is a fence.sc.
        scope: "cta", "gpu" or "sys".
    """

    is_sequential: bool
    scope: str


class Approximation:
    """rcp.approx and rsqrt.approx: the launch's unit says what they give."""

    def __init__(self, instruction: Instruction, registers: Registers) -> None:
        if instruction.modifiers != ("approx", "ftz", "f32"):
            raise unknown(instruction)
        (a,) = readers(instruction, registers, "f32")
        compute = {"rcp": reciprocal, "rsqrt": reciprocal_root}[instruction.base]
        self.unit = Unit()
        self.run = Result(instruction, registers, lambda lanes: compute(a(lanes), self.unit))


@decodes("rcp")
def _reciprocal(instruction: Instruction, registers: Registers) -> Operation:
    rounding, type_ = instruction.modifiers
    if rounding != "rn" or type_ not in ("f32", "f64"):
        raise unknown(instruction)
    one = dtype_of(type_).type(1)
    (a,) = readers(instruction, registers, type_)
    return Result(instruction, registers, lambda lanes: canonical(one / a(lanes)))


Decoded = (
    Branch
    | Exit
    | Barrier
    | WarpBarrier
    | Fence
    | MemoryOperation
    | WarpOperation
    | Approximation
    | Operation
)

WHOLE_WARPS = ("-1",), ("0xffffffff",)  # other masks would let threads wait for some of the warp
UNALIGNED = ("barrier.sync", "barrier.cta.sync")
BARRIERS = (
    *("bar.sync", "bar.cta.sync", "barrier.sync.aligned", "barrier.cta.sync.aligned"),
    *UNALIGNED,
)
SCOPES_OF_MEMBAR = {"cta": "cta", "gl": "gpu", "sys": "sys"}


class Kernel:
    """A kernel ready to run.

    Attributes:
        text: what the parser found.
        registers: their numbers.
        decoded: by instruction.
        guards: the number of the predicate register, or None, by instruction.
    """

    def __init__(self, text: KernelText) -> None:
        self.text = text
        self.registers = Registers(text)
        self.decoded: list[Decoded] = [self.decode(i) for i in text.instructions]
        self.guards = [
            None if i.guard is None else self.registers.number(i.guard) for i in text.instructions
        ]

    @property
    def name(self) -> str:
        return self.text.name

    @cached_property
    def approximations(self) -> list[Approximation]:
        return [found for found in self.decoded if isinstance(found, Approximation)]

    def decode(self, instruction: Instruction) -> Decoded:
        """What an instruction becomes.

        Raises:
            NotUnderstood: the interpreter does not know it.
        """
        try:
            return self._decoded(instruction)
        except (IndexError, KeyError, ValueError) as error:  # no such type, or other operands
            raise unknown(instruction) from error
        except NotUnderstood as error:
            if str(error) == str(unknown(instruction)):
                raise
            raise NotUnderstood(f"{unknown(instruction)}: {error}") from None

    def _decoded(self, instruction: Instruction) -> Decoded:
        base, modifiers = instruction.base, instruction.modifiers
        if base in OPERATIONS:
            return OPERATIONS[base](instruction, self.registers)
        if base in BASES:
            return WarpOperation(instruction, self.registers)
        if base in ("rcp", "rsqrt") and "approx" in modifiers:
            return Approximation(instruction, self.registers)
        if base in DECODERS:
            return DECODERS[base](instruction, self.registers)
        # .uni promises that no thread of the warp goes another way (section 9.7.12, bra), which is not checked
        if base == "bra" and (not modifiers or (modifiers == ("uni",) and not instruction.guard)):
            return Branch((self.text.labels[instruction.operands[0]],))
        if instruction.opcode == "brx.idx":
            index, targets = instruction.operands
            self.registers.number(index)
            return Branch(
                tuple(self.text.labels[label] for label in self.text.targets[targets]), index
            )
        if instruction.opcode in ("ret", "exit"):
            return Exit()
        if instruction.opcode in BARRIERS and len(instruction.operands) == 1:
            return Barrier(int(instruction.operands[0]), instruction.opcode not in UNALIGNED)
        if instruction.opcode == "bar.warp.sync" and instruction.operands in WHOLE_WARPS:
            return WarpBarrier()
        if base == "membar" and modifiers[0] in SCOPES_OF_MEMBAR:
            return Fence(True, SCOPES_OF_MEMBAR[modifiers[0]])
        if (
            base == "fence"
            and modifiers[0] in ("sc", "acq_rel")
            and modifiers[1:] in (("cta",), ("gpu",), ("sys",))
        ):
            return Fence(modifiers[0] == "sc", modifiers[1])
        raise unknown(instruction)
