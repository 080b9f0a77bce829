"""The text of a PTX module as kernels: their parameters, registers, shared variables, labels and instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# bytes of the types of section 5.2.1; a predicate has no size in memory
SIZES = {
    f"{letter}{bits}": bits // 8
    for letter, widths in {"b": (8, 16, 32, 64), "u": (8, 16, 32, 64), "s": (8, 16, 32, 64), "f": (16, 32, 64)}.items()
    for bits in widths
} | {"pred": 0, "f32x2": 8}  # fmt: skip


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
        registers: bytes of the registers declared one by one.
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
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
_SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)(\[(\d*)\])?")
_INSTRUCTION = re.compile(r"(?:@(!?)(%[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_LABEL = re.compile(r"([\w$]+):\s*(?!:)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+?)(?:<(\d+)>)?$")


def read(text: str) -> dict[str, KernelText]:
    """The kernels of a module by name.

    Raises:
        NotUnderstood: the text holds a function, a variable in global or constant memory, or another directive that
            the interpreter does not know.
    """
    text = _COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)
    # what follows describes the source to debuggers (section 11.5)
    text = text.partition(".section")[0]
    for word in (".func", ".callprototype", ".const ", ".local ", ".tex"):
        if re.search(
            rf"^\s*(\.visible\s+|\.extern\s+|\.weak\s+)?{re.escape(word)}", text, re.MULTILINE
        ):
            raise NotUnderstood(f"the module declares {word.strip()}")
    outside = _SHARED.findall(_without_bodies(text))
    return {entry[1]: _kernel(text, entry, outside) for entry in _ENTRY.finditer(text)}


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


def _kernel(text: str, entry: re.Match[str], outside: list[tuple[str, ...]]) -> KernelText:
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", entry[3])
    parameters, nbytes = _parameters(entry[2])
    kernel = KernelText(entry[1], parameters, nbytes, int(threads[1]) if threads else None)
    body = text[entry.end() : _end_of_body(text, entry.end())]
    named = [v for v in outside if v[2] in body] + _SHARED.findall(body)
    for align, type_, name, array, length in sorted(named, key=lambda v: v[3] == "[]"):
        kernel.shared[name] = _aligned(kernel.shared_bytes, int(align))
        size = SIZES[type_] * (int(length or 0) if array else 1)
        kernel.shared_bytes = kernel.shared[name] + size
    for line, statement in _statements(body, text.count("\n", 0, entry.end()) + 1):
        _read_statement(kernel, line, statement)
    return kernel


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align


def _parameters(declared: str) -> tuple[dict[str, tuple[int, int]], int]:
    found, end = {}, 0
    for text in split(declared):
        array = re.search(r"\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d+)\]", text)
        if array:
            align, name, size = int(array[1]), array[2], int(array[3])
        else:
            name, size = text.split()[-1], SIZES[re.search(r"\.param\s+\.(\w+)", text)[1]]
            align = size
        found[name] = (_aligned(end, align), size)
        end = found[name][0] + size
    return found, end


def _statements(body: str, line: int) -> Iterator[tuple[int, str]]:
    """Line and text of each; braces of scopes, as inline PTX has them, are left out."""
    body = re.sub(r"^[ \t]*[{}][ \t]*$", "", body, flags=re.MULTILINE)
    # scopes that share their line with instructions
    body = re.sub(r"(^|;)(\s*)\{(?=\s*(?:\.reg|[a-z@]))", r"\1\2 ", body)
    body = re.sub(r";(\s*)\}", r";\1 ", body)
    body = re.sub(r"^[ \t]*\.(loc|file)\b[^\n]*$", "", body, flags=re.MULTILINE)
    for text in body.split(";"):
        stripped = text.strip()
        if stripped:
            yield line + text[: len(text) - len(text.lstrip())].count("\n"), stripped
        line += text.count("\n")


def _read_statement(kernel: KernelText, line: int, text: str) -> None:
    name = ""
    while label := _LABEL.match(text):
        name = label[1]
        kernel.labels[name] = len(kernel.instructions)
        text = text[label.end() :]
    if text.startswith(".branchtargets"):
        kernel.targets[name] = tuple(split(text.removeprefix(".branchtargets")))
        del kernel.labels[name]
        return
    if registers := _REGISTERS.match(text):
        kernel.register_types[registers[2]] = registers[1]
        return
    if not text or text.startswith((".shared", ".pragma")):
        return
    found = _INSTRUCTION.fullmatch(text)
    if not found:
        raise NotUnderstood(f"line {line}: {text}")
    operands = tuple(split(found[4]))
    kernel.instructions.append(Instruction(found[3], operands, found[2], bool(found[1]), line))


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
