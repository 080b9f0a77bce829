"""Sphinx extension: docstrings in plain text with Markdown's code marks, and signatures with the names of types."""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_type_hints

from pages import aliases
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

from stackelberg_fused.groups import option_types

CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
GUIDE = re.compile(r"\bdocs/(\w+)\.md\b")


def convert(lines: list[str]) -> list[str]:
    """Turn a docstring into what Sphinx reads.

    Code marks become literals, indented blocks after a colon code blocks, and signs that mean something in
    reStructuredText (`*`, `|`, an underscore at the end of a word) themselves.
    """
    converted = []
    for is_code, block in _blocks(lines):
        converted += block if is_code else _escaped("\n".join(block)).split("\n")
    return _with_returns(converted)


def _blocks(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Text and code, in their order."""
    text: list[str] = []
    at = 0
    while at < len(lines):
        end = _end_of_code(lines, at)
        if end == at:
            text.append(lines[at])
            at += 1
            continue
        yield False, text
        text = []
        yield True, _code_block(lines[at:end], _indent(lines[at - 2]) if at >= 2 else 0)
        at = end
    yield False, text


def _end_of_code(lines: list[str], at: int) -> int:
    """Return the line after a code block that begins here, or this one."""
    if lines[at].lstrip().startswith(">>>"):
        return next((i for i in range(at, len(lines)) if not lines[i].strip()), len(lines))
    introduced = at >= 2 and not lines[at - 1].strip() and lines[at - 2].rstrip().endswith(":")
    outer = _indent(lines[at - 2]) if introduced else 0
    if not introduced or not lines[at].strip() or _indent(lines[at]) <= outer:
        return at
    end = at
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end]) > outer):
        end += 1
    return end


def _code_block(lines: list[str], outer: int) -> list[str]:
    """Return the lines with a directive before them, at the margin of the text that introduces them."""
    if lines[0].lstrip().startswith(">>>"):
        return lines
    try:
        ast.parse(textwrap.dedent("\n".join(lines)))
        language = "python"
    except SyntaxError:
        language = "text"
    return [f"{' ' * outer}.. code-block:: {language}", "", *lines, ""]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _escaped(text: str) -> str:
    """Text with literals for code, and all else as it is read."""
    parts = CODE.split(text)
    for i, part in enumerate(parts):
        if i % 2:
            before = r"\ " if re.search(r"\w$", parts[i - 1]) else ""
            after = r"\ " if re.match(r"\w", parts[i + 1]) else ""
            parts[i] = f"{before}``{part}``{after}"
    # every second one is code, which stays; what was put around it holds no sign that has to be escaped
    return "".join(part if i % 2 else _plain(part) for i, part in enumerate(parts))


def _plain(text: str) -> str:
    """Text without code: signs are escaped, pages of the guide are links."""
    escaped = re.sub(r"([\\*|]|(?<=\w)_(?!\w))", r"\\\1", text)
    return GUIDE.sub(r":doc:`/guide/\1`", escaped)


def _with_returns(lines: list[str]) -> list[str]:
    """Make a field of the section Returns: napoleon would take what is before a colon in it for a type."""
    if "Returns:" not in lines:
        return lines
    at = lines.index("Returns:")
    end = at + 1
    while end < len(lines) and (not lines[end].strip() or _indent(lines[end])):
        end += 1
    field = [f":returns: {lines[at + 1].strip()}", *lines[at + 2 : end]]
    return [*lines[:at], *field, *lines[end:]]


def with_types(lines: list[str], documented: type) -> list[str]:
    """Put the types of a dataclass's fields beside their names in the section Attributes.

    Args:
        lines: a docstring that is converted already.
        documented: the class.
    """
    if "Attributes:" not in lines:
        return lines
    hints = get_type_hints(documented)
    converted, inside = [], False
    for line in lines:
        entry = re.match(r"    (\w+(?:, \w+)*): ", line) if inside else None
        inside = line == "Attributes:" or (inside and line.startswith("    "))
        if entry:
            types = dict.fromkeys(_linked(hints[name]) for name in entry[1].split(", "))
            line = f"    {entry[1]} ({'; '.join(types)}): {line[entry.end() :]}"
        converted.append(line)
    return converted


def _linked(hint: Any) -> str:
    """A type in reStructuredText; those of the library are links."""
    text = _named(stringify_annotation(hint, "smart"))

    def link(match: re.Match[str]) -> str:
        full = match[1]
        return f":py:obj:`~{full}`" if full.startswith("stackelberg_fused.") else match[2]

    return re.sub(r"~((?:\w+\.)+(\w+))", link, text)


def _named(signature: str) -> str:
    """Write the names of types in place of what they stand for."""
    for text, alias in spelled().items():
        signature = signature.replace(text, alias)
    return signature.replace("| ~typing.Any", "| None")  # `MaybeNone`


def on_docstring(
    app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = convert(lines)
    if dataclasses.is_dataclass(documented) and isinstance(documented, type):
        lines[:] = with_types(lines, documented)


def spelled() -> dict[str, str]:
    """Return, by what Sphinx makes of a type in a signature, the name that it has here; long ones first."""
    module = option_types.__name__
    found = {stringify_annotation(alias, "smart"): name for name, alias in aliases().items()}
    return {text: f"~{module}.{found[text]}" for text in sorted(found, key=len, reverse=True)}


def on_signature(
    app: Sphinx, what: str, name: str, documented: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Write the names of types in place of what they stand for, and default classes by theirs."""
    if not signature:
        return None
    signature = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", _named(signature))
    return signature, _named(returns or "")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", on_docstring, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", on_signature)
    return {"parallel_read_safe": True}
