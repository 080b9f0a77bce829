"""The packages of the library in the order of their imports: each imports only from those after it.

A module right below `stackelberg_fused/` that several packages share stands at the end; so do the native modules.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "stackelberg_fused"
MAPPED = ("benchmarks", "triton_kernels")  # top-level folders, installed inside the package
FLOW = (
    *("__main__", "benchmarks", "tools", "demo", "integrations", "__init__", "report", "game"),
    *("optimizers", "engine", "backends", "triton_kernels", "layout", "groups", "numerics"),
    *(
        "native",
        "memory",
        "cli",
        "build_info",
        "warning",
        "torch_compat",
        "_version",
        "_cpu",
        "_cuda",
    ),
)
RANK = {name: rank for rank, name in enumerate(FLOW)}


def sources(root: Path) -> list[tuple[str, Path]]:
    """Every module of a checkout by its dotted name inside the package."""
    folders = [root / "stackelberg_fused", *(root / name for name in MAPPED)]
    found = []
    for folder in folders:
        base = folder if folder.name == "stackelberg_fused" else folder.parent
        found += [
            (".".join(path.relative_to(base).with_suffix("").parts), path)
            for path in sorted(folder.rglob("*.py"))
        ]
    return found


def absolute_imports(node: ast.AST) -> list[str]:
    """Modules of the package that a node imports by their full names: `import a.b`, `import_module("a.b")`."""
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        names = [node.args[0].value] if called in ("import_module", "__import__") else []
    return [n for n in names if str(n).partition(".")[0] == "stackelberg_fused"]


def imported(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level place inside the package of each import that runs when the module is used."""
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        for absolute in absolute_imports(node):
            yield node.lineno, ([*absolute.split("."), "__init__"])[1]
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            target = package[: len(package) - node.level + 1]
        elif (node.module or "").partition(".")[0] == "stackelberg_fused":
            target = []
        else:
            continue
        inside = (node.module or "").removeprefix("stackelberg_fused").lstrip(".")
        target = [*target, *filter(None, inside.split("."))]
        for alias in node.names:
            top = (*target, alias.name)[0]
            yield node.lineno, top if top in RANK else "__init__"


def upward(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{line}: {name.partition('.')[0]} imports {top}"
        for name, path in sources(root)
        for line, top in imported(name, path)
        if RANK[top] < RANK[name.partition(".")[0]]
    ]


def test_packages_import_only_downward() -> None:
    places = {name.partition(".")[0] for name, _ in sources(ROOT)}
    assert places <= set(RANK), "a new package has no rank"
    assert not upward(ROOT)


@pytest.mark.parametrize(
    "line",
    [
        "from ..engine.engine import Engine",
        "from stackelberg_fused.optimizers import base",
        "from .. import engine",
        "import stackelberg_fused.engine.engine",
        "import stackelberg_fused as sf",
        "importlib.import_module('stackelberg_fused.optimizers.base')",
    ],
)
def test_a_planted_upward_import_is_found(line: str, tmp_path: Path) -> None:
    planted = tmp_path / "stackelberg_fused" / "layout" / "planted.py"
    planted.parent.mkdir(parents=True)
    planted.write_text(f"def later():\n    {line}\n")
    assert len(upward(tmp_path)) == 1


def test_modules_of_a_package_import_each_other_in_one_direction() -> None:
    inner = {name for name, _ in sources(ROOT)}
    arrows: dict[str, set[str]] = {}
    for name, path in sources(ROOT):
        package = name.split(".")[:-1]
        tree = ast.parse(path.read_text())
        # under TYPE_CHECKING a module may name the class that owns it
        nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level]
        targets = {
            ".".join([*package[: len(package) - n.level + 1], *filter(None, [n.module]), *extra])
            for n in nodes
            for extra in ([], *([alias.name] for alias in n.names))
        }
        arrows[name] = targets & inner
    open_ = set(arrows)
    while free := {name for name in open_ if not arrows[name] & open_}:
        open_ -= free
    assert not open_, "these modules import each other in a circle"
