"""The sections of a Google-style docstring: what names a docstring explains, and which errors it says."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any


def sections(docstring: str) -> dict[str, dict[str, str]]:
    """Return, by section, the text of each entry by its name: `a, b: text` is two entries."""
    found: dict[str, dict[str, str]] = {}
    for title, body in re.findall(r"^(\w+):\n((?:(?:    .*)?\n)+)", docstring + "\n", re.MULTILINE):
        entries = found.setdefault(title, {})
        for names, text in re.findall(
            r"^    (\S[^:\n]*): ((?:.*\n?)(?:^ {5,}.*\n?)*)", body, re.MULTILINE
        ):
            entries.update(dict.fromkeys(re.split(r", ", names.replace("*", "")), text))
    return found


def parameters(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters of a function or a class, without `self`."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def raised(function: Callable[..., Any]) -> set[str]:
    """Return the names of the errors that stand after `raise` in a function, not in those that it calls."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body
    calls = [node.exc for node in _own_nodes(tree) if isinstance(node, ast.Raise)]
    # `raise error`, of one that was caught, says nothing here
    return {call.func.id for call in calls if isinstance(call, ast.Call)}


def _own_nodes(tree: ast.AST) -> list[ast.AST]:
    """All nodes but those of functions inside."""
    found = []
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
            found += [child, *_own_nodes(child)]
    return found
