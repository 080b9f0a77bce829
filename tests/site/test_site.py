"""The built site: an entry for every name, and pages that a browser shows as they are meant."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from paths import ROOT
from patience import patience
from public_api import PUBLIC, members

import stackelberg_fused as sf

pytest.importorskip("sphinx")
pytest.importorskip("matplotlib")  # decodes what a browser shows

import browser

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]


def entries(site: Path) -> list[str]:
    """Full names of the entries of all pages, as often as there are."""
    found = []
    for page in site.rglob("*.html"):
        found += re.findall(r'<dt class="[^"]*" id="(stackelberg_fused\.[^"]+)"', page.read_text())
    return [name.removeprefix("stackelberg_fused.") for name in found]


def test_every_public_name_has_one_entry(site: Path) -> None:
    found = entries(site)
    assert {name: found.count(name) for name in sf.__all__} == dict.fromkeys(sf.__all__, 1)


def test_every_method_has_an_entry(site: Path) -> None:
    found, missing = set(entries(site)), []
    for name, cls in PUBLIC.items():
        for member, (owner, _) in members(cls).items() if isinstance(cls, type) else ():
            # what several classes share is told of once
            alike = [k for k, v in PUBLIC.items() if isinstance(v, type) and issubclass(v, owner)]
            if not any(
                f"{one}.{member}" in found for one in (alike if owner is not cls else [name])
            ):
                missing.append(f"{name}.{member}")
    assert missing == []


def test_signatures_spell_the_options_with_names_of_types(site: Path) -> None:
    page = (site / "reference" / "optimizers.html").read_text()
    signature = re.search(r'id="stackelberg_fused\.StackelbergAdamW".*?</dt>', page, re.S)[0]
    text = re.sub(r"<[^>]+>", "", signature)
    assert re.search(r"state_dtype: StateDtype\s*\|\s*dict\[Role, StateDtype\]", text)
    assert "cautious: bool = False" in text
    assert "Literal" not in text


def test_the_guide_leads_to_the_reference(site: Path) -> None:
    page = (site / "guide" / "recipes.html").read_text()
    assert 'href="../reference/search.html#stackelberg_fused.find_rates"' in page


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    spec = spec_from_file_location("site_build", ROOT / "docs" / "site" / "build.py")
    build = module_from_spec(spec)
    spec.loader.exec_module(build)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="stays as it is"):
        build.build(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    executable = browser.find()
    if executable is None:
        reason = "no Chromium was found: apt-get install chromium, or name one by CHROME"
        if os.environ.get(browser.NEEDED) == "1":
            pytest.fail(f"{reason}; {browser.NEEDED}=1 says that there is one")
        pytest.skip(reason)
    with browser.Browser(executable, tmp_path_factory.mktemp("profile")) as found:
        yield found


def shade(view: browser.View, width: int) -> float:
    """Return how bright a part of a page is, from 0 to 255; the whole would take a second to decode."""
    clip = {"x": width // 2, "y": 100, "width": 150, "height": 150, "scale": 1}
    content = view.call("Page.captureScreenshot", clip=clip)["data"]
    return float(browser.pixels(base64.b64decode(content)).mean())


PAGES = ("index.html", "reference/optimizers.html", "reference/command_line.html")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_pages_in_a_browser(site: Path, chromium: browser.Browser, width: int, dark: bool) -> None:
    for page in PAGES:
        with chromium.view(width, dark=dark) as view:
            view.open(site / page)
            assert view.console == []
            assert [r for r in view.requests if not r.startswith(("file:", "data:"))] == []
            # nothing is cut off at the side, and pictures have come
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            assert view.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
            assert (shade(view, width) < 128) == dark


def test_the_search_finds_a_name(site: Path, chromium: browser.Browser) -> None:
    with chromium.view(1280) as view:
        view.open(site / "search.html")
        view.evaluate("Search.performSearch('layerwise_lr_decay')")
        found = "document.querySelector('#search-results a[href*=\"layerwise_lr_decay\"]')"
        limit = patience(browser.LOADING)
        until = None if limit is None else time.monotonic() + limit
        while not view.evaluate(f"{found} !== null"):
            assert until is None or time.monotonic() < until
            time.sleep(0.02)
