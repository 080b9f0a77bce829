"""The page as a file: whole, valid, without a request, and with nothing of the run's that is taken for markup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from recorded_run import HOSTILE, record

from stackelberg_fused.cli import main
from stackelberg_fused.report.page import write
from stackelberg_fused.report.page_script import SCRIPT

EMPTY = {"meta", "link", "img", "br", "input", "path", "line"}


class Elements(HTMLParser):
    """Collects elements, and holds that each one is closed."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)


def parsed(path: Path) -> Elements:
    elements = Elements()
    elements.feed(path.read_text(encoding="utf-8"))
    elements.close()
    assert elements.open == []
    return elements


def test_text_of_a_run_is_never_markup(tmp_path: Path) -> None:
    record(tmp_path / "run", ("a", HOSTILE), text=HOSTILE, steps=20)
    page = parsed(write(tmp_path / "run"))
    tags = [tag for tag, _ in page.found]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not [
        name for _, attributes in page.found for name in attributes if name.startswith("on")
    ]
    shown = HOSTILE.replace("\u2028", "")
    assert page.text["h1"][0].replace("\u2028", "") == shown
    data, script = page.text["script"]
    assert script == SCRIPT
    assert HOSTILE in {line["label"] for panel in json.loads(data) for line in panel["lines"]}


def test_the_page_asks_for_nothing_else(tmp_path: Path) -> None:
    record(tmp_path)
    path = write(tmp_path)
    text = path.read_text()
    assert path == tmp_path / "report.html"
    assert not re.findall(r"https?:|url\(|@import|src=", text)
    assert [a["href"] for tag, a in parsed(path).found if "href" in a] == ["data:,"]
    assert len(text) < 200_000


def test_a_chart_is_described_and_marked(tmp_path: Path) -> None:
    record(tmp_path)
    page = parsed(write(tmp_path))
    frames = [a for _, a in page.found if a.get("class") == "frame"]
    assert len(frames) == 10
    assert all(a["role"] == "img" and "step 400" in (a["aria-label"] or "") for a in frames)
    (language,) = [a["lang"] for tag, a in page.found if tag == "html"]
    assert language == "en"


def test_settings_and_environment_are_listed(tmp_path: Path) -> None:
    record(tmp_path, text="tiny")
    page = parsed(write(tmp_path))
    listed = dict(zip(page.text["dt"], page.text["dd"], strict=True))
    assert listed["data: source"] == listed["note"] == "tiny"
    assert listed["seed"] == "0"
    assert {"torch", "python", "cpu", "command", "folder"} <= listed.keys()
    assert "lr" not in listed  # it is in the table, as the arms differ in it


def test_the_command_says_where_the_page_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "run", steps=20)
    assert main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'report.html'}\n"
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "p.html")]) == 0
    assert (tmp_path / "p.html").read_bytes() == (tmp_path / "run" / "report.html").read_bytes()


def test_a_page_needs_no_torch(tmp_path: Path) -> None:
    record(tmp_path, steps=20)
    code = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "numpy", "matplotlib", "rich")))
from stackelberg_fused.cli import main
sys.exit(main(["report", {str(tmp_path)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("out", [None, "nowhere/p.html"])
def test_what_cannot_be_done_is_said_in_a_line(
    out: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if out:
        record(tmp_path, steps=20)
    before = sorted(tmp_path.iterdir())
    assert main(["report", str(tmp_path), *(["--out", str(tmp_path / out)] if out else [])]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"error: .*(has no file|No such file).*\n", printed.err)
    assert sorted(tmp_path.iterdir()) == before
