"""The text of a PTX module as kernels: their parameters, registers, shared variables, labels and instructions."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

# bytes of the types of section 5.2.1; a predicate has no size in memory
SIZES = {
    f"{letter}{bits}": bits // 8
    for letter, widths in {"b": (8, 16, 32, 64), "u": (8, 16, 32, 64), "s": (8, 16, 32, 64), "f": (16, 32, 64)}.items()
    for bits in widths
} | {"pred": 0, "bf16": 2, "f16x2": 4, "bf16x2": 4, "f32x2": 8}  # fmt: skip


class NotUnderstood(Exception):
    """The text holds something that the interpreter does not know. The message names it."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: with its modifiers, as it is spelled.
        operands: as they are spelled; a vector is one operand.
        guard: the predicate register that decides which threads execute it; None: all.
        negated: threads execute it where the guard is false.
        line: in the module's text, from 1.
    """

    opcode: str
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    line: int

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    def __str__(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)} (line {self.line})"


@dataclass
class KernelText:
    """An entry of a module.

    Attributes:
        parameters: offset and bytes by name.
        parameter_bytes: of all.
        threads: of a block, by .reqntid or .maxntid; None if the text does not say.
        shared: offset by name, of the variables in shared memory that the kernel names.
        shared_bytes: of all whose size is known; an external array, if any, begins there.
        instructions: in the order of the text.
        labels: the index of the instruction that follows each.
        targets: labels by the name of their list (.branchtargets).
        register_types: by the name without its number.
    """

    name: str
    parameters: dict[str, tuple[int, int]]
    parameter_bytes: int
    threads: int | None
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    register_types: dict[str, str] = field(default_factory=dict)


_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{]*)\{")
_SHARED = re.compile(
    r"(?:^|(?<=\s))\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)((?:\[\d*\])*)\s*(?=;)"
)
_INSTRUCTION = re.compile(r"(?:@(!?)(%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_LABEL = re.compile(r"([\w$]+):\s*(?!:)")
# `.param .align 8 .b8 name[176]` or `.param .u64 .ptr .global .align 16 name`, whose second alignment is that of what
# the pointer points to (section 7.1)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.(?:ptr|global|align\s+\d+)\s+)*([\w$]+)(?:\[(\d+)\])?"
)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%?[A-Za-z_$][\w$]*?)(?:<(\d+)>)?$")


def read(text: str) -> dict[str, KernelText]:
    """The kernels of a module by name.

    A variable in global memory is an error where an instruction names it.

    Raises:
        NotUnderstood: the text holds a function, a variable in constant or local memory, or another directive that
            the interpreter does not know.
    """
    text = _COMMENT.sub(lambda comment: " " + "\n" * comment[0].count("\n"), text)
    # what follows describes the source to debuggers (section 11.5)
    text, _, rest = text.partition(".section")
    for word in (".func", ".callprototype", ".const ", ".local ", ".tex"):
        if re.search(
            rf"^\s*(\.visible\s+|\.extern\s+|\.weak\s+)?{re.escape(word)}", text, re.MULTILINE
        ):
            raise NotUnderstood(f"the module declares {word.strip()}")
    entries = list(_ENTRY.finditer(text))
    if len(re.findall(r"\.entry\b", text + rest)) != len(entries):
        raise NotUnderstood("an entry that the interpreter does not find")
    outside = _shared_variables(_without_bodies(text))
    return {entry[1]: _kernel(text, entry, outside) for entry in entries}


@dataclass(frozen=True)
class _Shared:
    """A variable in shared memory; `count` elements, 0: as many as the launch brings."""

    name: str
    align: int
    size: int
    count: int


def _shared_variables(text: str) -> list[_Shared]:
    found = []
    for align, type_, name, dimensions in _SHARED.findall(text):
        size = SIZES[type_]
        count = math.prod(int(n or 0) for n in re.findall(r"\[(\d*)\]", dimensions))
        found.append(_Shared(name, int(align or size), size, count))
    if len(found) != len(re.findall(r"(?:^|\s)\.shared\b", text)):
        raise NotUnderstood("the declaration of a variable in shared memory")
    return found


def _without_bodies(text: str) -> str:
    kept, end = [], 0
    for entry in _ENTRY.finditer(text):
        kept.append(text[end : entry.start()])
        end = _end_of_body(text, entry.end())
    return "".join([*kept, text[end:]])


def _end_of_body(text: str, start: int) -> int:
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return brace.start()
    raise NotUnderstood("a kernel without an end")


def _kernel(text: str, entry: re.Match[str], outside: list[_Shared]) -> KernelText:
    threads = re.search(r"\.(?:reqntid|maxntid)\s+([\d\s,]+)", entry[3])
    parameters, nbytes = _parameters(entry[2] or "")
    kernel = KernelText(entry[1], parameters, nbytes, None)
    if threads:
        kernel.threads = math.prod(map(int, threads[1].split(",")))
    body = text[entry.end() : _end_of_body(text, entry.end())]
    names = set(re.findall(r"[\w$]+", body))
    named = [v for v in outside if v.name in names] + _shared_variables(body)
    for variable in sorted(named, key=lambda v: v.count == 0):
        kernel.shared[variable.name] = _aligned(kernel.shared_bytes, variable.align)
        kernel.shared_bytes = kernel.shared[variable.name] + variable.size * variable.count
    _Body(kernel).read(body, text.count("\n", 0, entry.end()) + 1)
    return kernel


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align


def _parameters(declared: str) -> tuple[dict[str, tuple[int, int]], int]:
    found, end = {}, 0
    for text in split(declared):
        parameter = _PARAMETER.fullmatch(text)
        if not parameter:
            raise NotUnderstood(f"the parameter {text}")
        align, type_, name, count = parameter.groups()
        size = SIZES[type_] * int(count or 1)
        found[name] = (_aligned(end, int(align or SIZES[type_])), size)
        end = found[name][0] + size
    return found, end


_NAME = re.compile(r"(?<![\w$%.])%?[A-Za-z_$][\w$]*")
_SCOPE = re.compile(r"\s*((?:[\w$]+\s*:\s*)*)([{}])")  # where an instruction could begin


class _Body:
    """Reads the statements of a kernel. A scope's registers are its own, as inline PTX has them (section 7.1)."""

    def __init__(self, kernel: KernelText) -> None:
        self._kernel = kernel
        # the registers declared in each, and what the instructions call them then
        self._scopes: list[dict[str, str]] = [{}]

    def read(self, body: str, line: int) -> None:
        """Read all statements; `line` is that of the first."""
        body = re.sub(r"^[ \t]*\.(loc|file)\b[^\n]*$", "", body, flags=re.MULTILINE)
        body, at = body.rstrip(), 0
        while at < len(body):
            scope = _SCOPE.match(body, at)
            if scope:
                self._label(scope[1])
                if scope[2] == "{":
                    self._scopes.append({})
                else:
                    self._scopes.pop()
                line, at = line + scope[0].count("\n"), scope.end()
                continue
            end = body.find(";", at)
            text = body[at:end] if end >= 0 else body[at:]
            start = line + text[: len(text) - len(text.lstrip())].count("\n")
            if end < 0:
                text = self._label(text.lstrip())
                if not text:
                    return
                raise NotUnderstood(f"line {start}: {text.strip()}")
            self._statement(start, text.strip())
            line, at = line + text.count("\n"), end + 1

    def _label(self, text: str) -> str:
        """Note the labels that a text begins with; the rest."""
        while label := _LABEL.match(text):
            if label[1] in self._kernel.labels:
                raise NotUnderstood(f"a second label {label[1]}")
            self._kernel.labels[label[1]] = len(self._kernel.instructions)
            text = text[label.end() :]
        return text

    def _statement(self, line: int, text: str) -> None:
        label, colon, targets = text.partition(".branchtargets")
        if colon and label.strip().endswith(":"):
            self._kernel.targets[label.strip()[:-1].strip()] = tuple(split(targets))
            return
        text = self._label(text)
        if registers := _REGISTERS.match(text):
            self._declare(registers[2], registers[1])
            return
        if not text or text.startswith((".shared", ".pragma")):
            return
        found = _INSTRUCTION.fullmatch(text)
        if not found:
            raise NotUnderstood(f"line {line}: {text}")
        operands = tuple(self._called_here(part) for part in split(found[4]))
        guard = found[2] and self._called_here(found[2])
        self._kernel.instructions.append(
            Instruction(found[3], operands, guard, bool(found[1]), line)
        )

    def _declare(self, name: str, type_: str) -> None:
        if name in self._scopes[-1]:
            raise NotUnderstood(f"a second register {name}")
        unique = name
        while unique in self._kernel.register_types or not unique.startswith("%"):
            unique = f"%{len(self._kernel.register_types)}${name.lstrip('%')}"
        self._scopes[-1][name] = unique
        self._kernel.register_types[unique] = type_

    def _called_here(self, operand: str) -> str:
        """The operand with the registers that the innermost scopes mean by their names."""
        if all(name == unique for scope in self._scopes for name, unique in scope.items()):
            return operand

        def unique(name: re.Match[str]) -> str:
            stem = re.sub(r"\d+$", "", name[0])
            for scope in reversed(self._scopes):
                if name[0] in scope:
                    return scope[name[0]]
                if stem in scope:
                    return scope[stem] + name[0][len(stem) :]
            return name[0]

        return _NAME.sub(unique, operand)


def split(text: str) -> list[str]:
    """The parts between commas outside of brackets, without spaces around them."""
    parts, depth, part = [], 0, ""
    for letter in text:
        depth += {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()] if part.strip() else parts
