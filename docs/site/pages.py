"""The sources of the site: pages that are written for GitHub, with links to what the site has, and generated ones."""

from __future__ import annotations

import inspect
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import get_type_hints

from sphinx.util.typing import stringify_annotation

from stackelberg_fused.cli import COMMANDS, main
from stackelberg_fused.groups import option_types

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Path(__file__).resolve().parent / "reference"
# pages of the checkout that are no guide: where they lie on the site
OTHERS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/results/README.md": "measurements.md",
}
# of the guide; a page that is not named here comes after them
ORDER = (
    "training_step",
    "integrations",
    "moving",
    "recipes",
    "differences",
    "low_precision",
    "sharded",
    "algorithm",
)
FENCE = re.compile(r"^( *)(```|~~~)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def stage(target: Path) -> None:
    """Write everything that Sphinx reads into an empty folder.

    Raises:
        FileNotFoundError: a page links to a file that the checkout does not have.
    """
    pages = published()
    files: set[str] = set()
    for source, name in pages.items():
        text = (ROOT / source).read_text()
        _write(target / name, rewritten(text, source, pages, files))
    for file in sorted(files):
        _carry(file, target)
    shutil.copytree(REFERENCE, target / "reference")
    _write(target / "reference" / "command_line.md", command_line())
    types = target / "reference" / "types.rst"
    types.write_text(types.read_text() + option_types_page())
    with (target / "index.md").open("a") as index:
        index.write(contents(pages, files))


def published() -> dict[str, str]:
    """Return, by the path of each page in the checkout, its path on the site."""
    guide = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")]

    def place(path: str) -> tuple[int, str]:
        stem = Path(path).stem
        return ORDER.index(stem) if stem in ORDER else len(ORDER), stem

    in_guide = {path: f"guide/{Path(path).name}" for path in sorted(guide, key=place)}
    return {**OTHERS, **in_guide}


def rewritten(text: str, source: str, pages: dict[str, str], files: set[str]) -> str:
    """Make the links of a page lead to pages of the site, and to copies of all else that the checkout has.

    Args:
        text: Markdown.
        source: where it lies in the checkout.
        pages: as `published` returns them.
        files: gets what else is linked: files and folders of the checkout.
    """
    folder = PurePosixPath(pages[source]).parent

    def moved(match: re.Match[str]) -> str:
        link = match[1]
        if re.match(r"[a-z]+:|#", link):
            return match[0]
        name, _, anchor = link.partition("#")
        found = (ROOT / source).parent / name
        if not found.exists():
            raise FileNotFoundError(f"{source}: {link}")
        path = found.resolve().relative_to(ROOT).as_posix()
        if path not in pages:
            files.add(path)
        where = pages.get(path) or staged(path)
        anchor = f"#{anchor}" if anchor else ""
        return f"]({os.path.relpath(where, folder)}{anchor})"

    return "".join(LINK.sub(moved, line) if is_prose else line for is_prose, line in _lines(text))


def _lines(text: str) -> Iterator[tuple[bool, str]]:
    """The lines of a page; whether each is outside of code blocks."""
    inside = False
    for line in text.splitlines(keepends=True):
        fence = FENCE.match(line) is not None
        yield not (inside or fence), line
        inside ^= fence


def staged(path: str) -> str:
    """Return where a file of the checkout lies among the sources; of a folder: the page that lists it."""
    return f"files/{path}.md" if (ROOT / path).is_dir() else f"files/{path}"


def _carry(path: str, target: Path) -> None:
    """Copy a file; of a folder, its files, and make a page that lists them."""
    if (ROOT / path).is_file():
        (target / staged(path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, target / staged(path))
        return
    names = sorted(child.name for child in (ROOT / path).iterdir() if child.is_file())
    for name in names:
        _carry(f"{path}/{name}", target)
    folder = Path(path).name
    listed = "\n".join(f"- [{name}]({folder}/{name})" for name in names)
    _write(target / staged(path), f"# {path}\n\n{listed}\n")


def contents(pages: dict[str, str], files: set[str]) -> str:
    """Return the tables of contents, which the theme shows beside each page."""
    guide = [name for name in pages.values() if name.startswith("guide/")]
    more = [name for name in pages.values() if "/" not in name and name != "index.md"]
    folders = [staged(path) for path in sorted(files) if (ROOT / path).is_dir()]
    parts = {"Reference": ["reference/index.rst"], "Guide": guide, "Project": [*more, *folders]}
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n"
        + "".join(f"{_entry(name)}\n" for name in names)
        + "```\n"
        for caption, names in parts.items()
    )


def _entry(name: str) -> str:
    """Return a page's line in a table of contents; two would have the same title."""
    page = name.rpartition(".")[0]
    if page == "measurements":
        return f"Measurements <{page}>"
    return f"Files: {Path(page).name} <{page}>" if page.startswith("files/") else page


def command_line() -> str:
    """Return the page of the commands: what `--help` prints of each."""
    parts = [
        "# Command line\n\n`stackelberg COMMAND`, or `python -m stackelberg_fused COMMAND`. "
        "This is what `--help` prints.\n",
        _help([]),
    ]
    parts += [f"\n## {command}\n{_help([command])}" for command in COMMANDS]
    return "".join(parts)


def _help(command: list[str]) -> str:
    printed, columns = StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with redirect_stdout(printed):
            main([*command, "--help"])
    except SystemExit as ended:
        if ended.code:
            raise
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return f"\n```text\n{printed.getvalue().strip()}\n```\n"


def option_types_page() -> str:
    """Return an entry for each type of an option, with what its module says of it."""
    says = described(inspect.getdoc(option_types) or "")
    entries = []
    for name, alias in aliases().items():
        values = re.sub(r"~(?:\w+\.)+", "", stringify_annotation(alias, "smart"))
        entries.append(
            f"\n.. py:type:: {name}\n   :canonical: {values}\n\n   {says[name][0].upper()}{says[name][1:]}\n"
        )
    return "".join(entries)


def aliases() -> dict[str, object]:
    """Return the types of options by their names."""
    named = get_type_hints(option_types)
    return {name: getattr(option_types, name) for name in named if name != "MaybeNone"}


def described(docstring: str) -> dict[str, str]:
    """Return what the section Attributes of a docstring says of each name."""
    section = docstring.partition("Attributes:\n")[2]
    found = {}
    for entry in re.split(r"\n(?=    \S)", section):
        names, _, text = entry.strip().partition(": ")
        found.update(dict.fromkeys(names.split(", "), re.sub(r"`([^`]+)`", r"``\1``", text)))
    return {name: re.sub(r"\s+", " ", text) for name, text in found.items()}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
