"""The pages: their snippets run, their links lead somewhere, the files that they name exist."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from stackelberg_fused.benchmarks import headline_chart
from torch import Tensor, nn

import stackelberg_fused as sf

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
RESULTS = ROOT / "benchmarks" / "results"  # not in source distributions
PAGES += [page for page in (RESULTS / "README.md",) if page.exists()]
MOST_LINES = 150  # of the README
CLASSES = 7

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


class Block(nn.Module):
    """Stand-in for a block of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.norm(x)).tanh()


class GPT(nn.Module):
    """Stand-in for a language model: ids [batch, time] to logits [batch, time, CLASSES]."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Sequential(Block(), Block())
        self.body = nn.Sequential(OrderedDict(embed=nn.Embedding(CLASSES, 8), layers=layers))
        self.adapter = nn.Linear(8, 8)
        self.gate = nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.body(ids))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten())


def stand_ins() -> dict[str, Any]:
    """Return the names that the pages take for granted."""
    inputs, targets = torch.randint(CLASSES, (2, 4, 5)).unbind()
    return {
        "torch": torch,
        "sf": sf,
        "model": GPT(),
        "make_model": GPT,
        "loss_fn": cross_entropy,
        "inputs": inputs,
        "targets": targets,
        "batches": [(inputs, targets)],
        "evaluate": lambda model: model(inputs),
    }


def snippets(page: Path) -> list[tuple[int, str]]:
    """The line and the text of each Python block."""
    text = page.read_text()
    blocks = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: block.start(1)].count("\n"), block[1]) for block in blocks]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    """A process group of one, for snippets that reduce gradients."""
    where = f"file://{tmp_path / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WITH_SNIPPETS = [page for page in PAGES if snippets(page)]
SLOW = ("recipes.md",)  # searches for a ratio


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in SLOW else [])
        for page in WITH_SNIPPETS
    ],
)
@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning")
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, each with the names of those before it; on the CPU, where they mean the same."""
    monkeypatch.chdir(tmp_path)  # some write files
    names = stand_ins()
    for line, text in snippets(page):
        code = "\n" * line + text.replace('"cuda"', '"cpu"')
        exec(compile(code, str(page), "exec"), names)


def test_every_page_says_head_alike() -> None:
    """One model and one head in all snippets, so that a reader can carry one to another page."""
    for page in WITH_SNIPPETS:
        for line, text in snippets(page):
            heads = re.findall(r"split_body_head\(([^)]*)\)", text)
            assert set(heads) <= {'model, head="lm_head"'}, f"{page.name}:{line}: {heads}"


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


@cache
def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)}


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue  # another site
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if file.is_relative_to(RESULTS) and not RESULTS.exists():
            continue
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}, of {sorted(anchors(file))}"


@cache
def files() -> frozenset[str]:
    """Every file of the checkout, and every folder, from its root."""
    own = [
        path
        for path in ROOT.iterdir()
        if path.name not in (".git", "build", "runs") and not (path / "pyvenv.cfg").exists()
    ]
    inner = [path for folder in own if folder.is_dir() for path in folder.rglob("*")]
    return frozenset(path.relative_to(ROOT).as_posix() for path in (*own, *inner))


TOP = (
    "benchmarks",
    "csrc",
    "docs",
    "release",
    "requirements",
    "stackelberg_fused",
    "tests",
    "triton_kernels",
)
SUFFIXES = ("py", "h", "cpp", "cu", "cuh", "md", "png", "sh", "toml", "cff", "yaml", "in")


@by_page
def test_files_that_a_page_names_exist(page: Path) -> None:
    for quoted in re.findall(r"`([\w./-]+)`", prose(page)):
        if quoted.startswith("torch/"):
            continue  # torch's own sources
        is_file = quoted.rpartition(".")[2] in SUFFIXES and not quoted.startswith(".")
        is_path = quoted.split("/")[0] in TOP and "/" in quoted
        if is_path or (is_file and "/" in quoted):
            assert quoted.rstrip("/") in files(), f"{page.name}: `{quoted}`"
        elif is_file and quoted.endswith((".py", ".h", ".cpp", ".cu", ".cuh")):
            assert any(name.endswith(f"/{quoted}") for name in files()), f"{page.name}: `{quoted}`"


def remarks(name: str) -> str:
    """Return the comments and docstrings of a source file."""
    text = (ROOT / name).read_text(errors="replace")
    if name.endswith(".sh"):
        return "\n".join(re.findall(r"(?:^|\s)#(.*)", text))
    if not name.endswith(".py"):
        return "\n".join(re.findall(r"//(.*)", text))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [token.string for token in tokens if token.type == tokenize.COMMENT]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, documented)]
    return "\n".join([*found, *(ast.get_docstring(node) or "" for node in nodes)])


SOURCES = (".py", ".h", ".cpp", ".cu", ".cuh", ".sh")
A_FILE = re.compile(r"(?<![\w./-])(?:[\w-]+/)*[\w-]+\.(?:py|h|cpp|cu|cuh|md|sh)\b")
OTHERS = ("torch/", "Python.h")  # not of this repository


def test_files_that_comments_name_exist() -> None:
    """Also pages: a file that was moved is to be found under its new name."""
    ends = {name[at:] for name in files() for at in _starts(name)}
    stale = [
        f"{name}: {found}"
        for name in sorted(files())
        if name.endswith(SOURCES) and not name.startswith(("findings/", ".venv"))
        for found in A_FILE.findall(remarks(name))
        if found not in ends and not found.startswith(OTHERS)
    ]
    assert stale == []


def _starts(name: str) -> list[int]:
    """Return where the parts of a path begin."""
    return [0, *(match.end() for match in re.finditer("/", name))]


def test_remarks_are_comments_and_docstrings(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "one.py").write_text('"""Like two.py."""\nx = "three.py"  # as four.py\n')
    (tmp_path / "one.h").write_text('#include "two.h"\nint x;  // as in three.h\n')
    (tmp_path / "one.sh").write_text("run two.sh # as three.sh\n")
    found = [A_FILE.findall(remarks(f"one.{end}")) for end in ("py", "h", "sh")]
    assert found == [["four.py", "two.py"], ["three.h"], ["three.sh"]]


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= MOST_LINES


@pytest.mark.skipif(not RESULTS.exists(), reason="a source distribution has no results")
def test_the_readmes_figures_are_those_of_a_committed_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = json.loads((RESULTS / "cpu-xeon-2-cores-peers.json").read_text())
    headline_chart.draw(result, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000
    (row,) = (row for row in result["rows"] if row["name"] == headline_chart.ROW)
    times = {entry["name"]: entry.get("p50_ns", 0) / 1e6 for entry in row["entries"]}
    said = re.search(
        r"takes ([\d.]+) ms. torch's fused AdamW takes ([\d.]+) ms", prose(ROOT / "README.md")
    )
    assert said.groups() == (f"{times['ours cpu']:.2f}", f"{times['torch fused']:.1f}")


def test_the_citation_is_the_same_in_both_files() -> None:
    """CITATION.cff names the paper as the README's BibTeX does."""
    cff = (ROOT / "CITATION.cff").read_text()
    assert cff.startswith("cff-version: 1.2.0\n")
    bibtex = re.search(r"```bibtex\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    fields = dict(re.findall(r"(\w+)\s*= \{(.*)\}", bibtex))
    first, last = fields["pages"].split("--")
    expected = {
        "title": '"' + re.sub(r"[{}]", "", fields["title"]) + '"',
        "volume": fields["volume"],
        "year": fields["year"],
        "start": first,
        "end": last,
        "value": fields["note"],
    }
    paper = cff.partition("references:")[2]
    for key, value in expected.items():
        assert re.findall(rf"^ *(?:- )?{key}: (.*)$", paper, re.MULTILINE) == [value], key
    people = re.findall(r"family-names: (\w+)\n *given-names: (\w+)", paper)
    assert " and ".join(map(", ".join, people)) == fields["author"]
