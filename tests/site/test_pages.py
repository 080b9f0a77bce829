"""Pages for GitHub become pages of the site."""

from __future__ import annotations

import pytest

pytest.importorskip("sphinx")

import pages
from paths import ROOT

from stackelberg_fused.cli import COMMANDS


def rewritten(text: str, source: str = "docs/numerics.md") -> tuple[str, set[str]]:
    files: set[str] = set()
    return pages.rewritten(text, source, pages.published(), files), files


@pytest.mark.parametrize(
    "source, link, expected",
    [
        ("docs/numerics.md", "low_precision.md#final-loss", "low_precision.md#final-loss"),
        ("docs/numerics.md", "#powers", "#powers"),
        ("docs/numerics.md", "https://example.org/x.md", "https://example.org/x.md"),
        ("docs/numerics.md", "../README.md", "../index.md"),
        ("docs/numerics.md", "../LICENSE", "../files/LICENSE"),
        ("README.md", "docs/numerics.md", "guide/numerics.md"),
        ("README.md", "docs/many-groups.png", "files/docs/many-groups.png"),
        ("CONTRIBUTING.md", "docs/architecture.md#engine", "guide/architecture.md#engine"),
        ("docs/numerics.md", "../findings", "../files/findings.md"),
    ],
)
def test_links_lead_to_the_site(source: str, link: str, expected: str) -> None:
    assert rewritten(f"See [it]({link}).\n", source)[0] == f"See [it]({expected}).\n"


def test_what_is_no_page_is_carried() -> None:
    assert rewritten("[a](../LICENSE) [b](numerics.md)")[1] == {"LICENSE"}


def test_code_blocks_stay() -> None:
    text = "```python\nx = y[0](name)\n```\n"
    assert rewritten(text) == (text, set())


def test_a_link_to_nothing_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match=r"docs/numerics\.md: gone\.md"):
        rewritten("[it](gone.md)")


def test_every_page_of_the_guide_is_published() -> None:
    guide = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert guide <= set(pages.published())
    assert len(set(pages.published().values())) == len(pages.published())


def test_the_command_line_is_what_help_prints() -> None:
    page = pages.command_line()
    for command in COMMANDS:
        assert f"\n## {command}\n" in page
        assert f"usage: stackelberg {command} " in page


def test_types_of_options_are_described() -> None:
    entries = pages.option_types_page()
    assert ".. py:type:: Role\n   :canonical: Literal['body', 'head']" in entries
    assert entries.count(".. py:type::") == len(pages.aliases())
