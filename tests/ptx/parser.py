"""The text of a PTX module as kernels: their parameters, registers, shared variables, labels and instructions."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from .statements import Body
from .text import SIZES, Instruction, KernelText, NotUnderstood, split

__all__ = ["SIZES", "Instruction", "KernelText", "NotUnderstood", "read", "split"]

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{]*)\{")
_SHARED = re.compile(
    r"(?:^|(?<=\s))\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)((?:\[\d*\])*)\s*(?=;)"
)
# `.param .align 8 .b8 name[176]` or `.param .u64 .ptr .global .align 16 name`, whose second alignment is that of what
# the pointer points to (section 7.1)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.(?:ptr|global|align\s+\d+)\s+)*([\w$]+)(?:\[(\d+)\])?"
)


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
        if type_ not in SIZES:
            raise NotUnderstood(f"a variable of type {type_} in shared memory")
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
    Body(kernel).read(body, text.count("\n", 0, entry.end()) + 1)
    return kernel


def _aligned(offset: int, align: int) -> int:
    return -(-offset // align) * align


def _parameters(declared: str) -> tuple[dict[str, tuple[int, int]], int]:
    found, end = {}, 0
    for text in split(declared):
        parameter = _PARAMETER.fullmatch(text)
        if not parameter or parameter[2] not in SIZES:
            raise NotUnderstood(f"the parameter {text}")
        align, type_, name, count = parameter.groups()
        size = SIZES[type_] * int(count or 1)
        found[name] = (_aligned(end, int(align or SIZES[type_])), size)
        end = found[name][0] + size
    return found, end
