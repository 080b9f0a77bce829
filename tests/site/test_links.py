"""Links of a built site."""

from __future__ import annotations

from pathlib import Path

import pytest
from links import broken


@pytest.mark.parametrize(
    "html, said",
    [
        ('<a href="other.html#there">x</a>', []),
        ('<a href="#here">x</a>', []),
        ('<a href="https://example.org/">x</a>', []),
        ('<img src="data:image/png;base64,AA">', []),
        ('<a href="gone.html">x</a>', ["page.html: gone.html is no file"]),
        ('<a href="other.html#gone">x</a>', ["page.html: other.html#gone is no anchor there"]),
        ('<a href="#gone">x</a>', ["page.html: #gone is no anchor there"]),
        ('<img src="gone.png">', ["page.html: gone.png is no file"]),
        (
            '<script src="https://example.org/x.js"></script>',
            ["page.html: loads https://example.org/x.js"],
        ),
        ('<link href="//example.org/x.css">', ["page.html: loads //example.org/x.css"]),
    ],
)
def test_broken_links_are_named(tmp_path: Path, html: str, said: list[str]) -> None:
    (tmp_path / "page.html").write_text(f'<p id="here">{html}</p>')
    (tmp_path / "other.html").write_text('<p id="there"></p>')
    assert broken(tmp_path) == said
