"""What a loop of a Triton kernel hands on to its next round.

Triton 3.7 and 3.9 find out by going through the body once: a name is handed on if it has another value afterwards than
before. Of two names that begin as one value, `a = b` leaves the value of `a` as it was, so the loop forgets it. The
interpreter does not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from paths import ROOT

KERNELS = sorted((ROOT / "triton_kernels").glob("*.py"))
FORGETS = """
def kernel(values):
    zero = values - values
    below, below_that = zero, zero
    for i in range(3):
        below_that = below
        below = values + i
"""
KEEPS = FORGETS.replace("zero, zero\n", "zero, zero + 0\n")


def assignments(nodes: list[ast.stmt]) -> Iterator[tuple[int, str, ast.expr]]:
    """Line, name and value of every plain assignment, those of tuples taken apart."""
    for node in nodes:
        for inner in ast.walk(node):
            if not isinstance(inner, ast.Assign):
                continue
            (target,) = inner.targets
            both = isinstance(target, ast.Tuple) and isinstance(inner.value, ast.Tuple)
            pairs = (
                zip(target.elts, inner.value.elts, strict=True) if both else [(target, inner.value)]
            )
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    yield inner.lineno, name.id, value


def forgotten(source: str) -> list[str]:
    """Assignments `a = b` in loops before which both names were given the same third one, or one the other."""
    found = []
    for function in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)):
        for loop in ast.walk(function):
            if not isinstance(loop, (ast.For, ast.While)):
                continue
            before: dict[str, str] = {}
            for line, name, value in assignments(function.body):
                if line < loop.lineno:
                    before[name] = (
                        value.id if isinstance(value, ast.Name) else f"line {line} {name}"
                    )
            for line, name, value in assignments(loop.body):
                if isinstance(value, ast.Name) and name in before:
                    origin = before.get(value.id, value.id)
                    if before[name] in (origin, value.id):
                        found.append(f"{function.name}, line {line}: {name} = {value.id}")
    return found


def test_no_loop_forgets_a_name() -> None:
    assert KERNELS
    assert {path.name: found for path in KERNELS if (found := forgotten(path.read_text()))} == {}


def test_such_a_loop_is_seen() -> None:
    assert forgotten(FORGETS) == ["kernel, line 6: below_that = below"]
    assert forgotten(KEEPS) == []
