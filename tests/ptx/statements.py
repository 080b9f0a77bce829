"""The statements of a kernel: labels, registers, instructions, and scopes (sections 4 and 7.1)."""

from __future__ import annotations

import re

from .text import Instruction, KernelText, NotUnderstood, split

_INSTRUCTION = re.compile(r"(?:@(!?)(%?[\w$]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_LABEL = re.compile(r"([\w$]+):\s*(?!:)")
_TARGETS = re.compile(r"((?:[\w$]+\s*:\s*)*)([\w$]+)\s*:\s*\.branchtargets\b(.*)", re.DOTALL)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%?[A-Za-z_$][\w$]*?)(?:<(\d+)>)?$")
_NAME = re.compile(r"(?<![\w$%.])%?[A-Za-z_$][\w$]*")
_SCOPE = re.compile(r"\s*((?:[\w$]+\s*:\s*)*)([{}])")  # where an instruction could begin


class Body:
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
        if targets := _TARGETS.fullmatch(text):
            self._label(targets[1])
            self._kernel.targets[targets[2]] = tuple(split(targets[3]))
            return
        rest = self._label(text)
        line += text[: len(text) - len(rest)].count("\n")
        text = rest
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
        if len(self._scopes) > 1 or not name.startswith("%"):
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
