"""Checks of a built site: every link leads to a page and an anchor of it, and nothing is loaded from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """One page.

    Attributes:
        anchors: of its elements.
        links: addresses that a reader may follow.
        loaded: addresses that a browser asks for at once.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors.update(value for name in ("id", "name") if (value := found.get(name)))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"] or "")
        if address := found.get(LOADED.get(tag, "")):
            self.loaded.append(address)


def broken(site: Path) -> list[str]:
    """Return a line for each link that leads nowhere, and for each address that is loaded from another site."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    said = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        for address in [*page.links, *page.loaded]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loaded and parts.scheme != "data":
                    said.append(f"{name}: loads {address}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                said.append(f"{name}: {address} is no file")
            elif target in pages and unquote(parts.fragment) not in {"", *pages[target].anchors}:
                said.append(f"{name}: {address} is no anchor there")
    return said
