"""Snippets of docs/callbacks.md, which need a library that the other pages do not."""

from __future__ import annotations

from paths import ROOT


def snippet_under(heading: str) -> str:
    """The first Python block under a heading."""
    page = (ROOT / "docs" / "callbacks.md").read_text()
    section = page.partition(f"\n## {heading}\n")[2]
    return section.partition("```py\n")[2].partition("```")[0]
