"""The page in a real browser: it is drawn, at any width, light and dark, without an error or a request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import NEEDED, Browser, View, find
from recorded_run import HOSTILE, record

from stackelberg_fused.report.page import write
from stackelberg_fused.report.page_style import DARK, DARK_ARMS, LIGHT, LIGHT_ARMS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

WIDTHS = (1280, 390)  # of a desk and of a phone
NARROWEST = 320


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find()
    if executable is None:
        reason = "no Chromium was found: apt-get install chromium, or name one by CHROME"
        if os.environ.get(NEEDED) == "1":
            pytest.fail(f"{reason}; {NEEDED}=1 says that there is one")
        pytest.skip(reason)
    with Browser(executable, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    record(folder)
    return write(folder)


def rgb(color: str) -> np.ndarray:
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.uint8)


def count(image: np.ndarray, color: str) -> int:
    return int((np.abs(image.astype(int) - rgb(color)).max(-1) <= 2).sum())


def quiet(view: View, page: Path) -> None:
    assert view.console == []
    assert view.requests == [page.as_uri()]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_drawn(
    width: int, dark: bool, browser: Browser, page: Path, tmp_path: Path
) -> None:
    colors, arms = (DARK, DARK_ARMS) if dark else (LIGHT, LIGHT_ARMS)
    with browser.view(width, dark=dark) as view:
        view.open(page)
        image = view.screenshot(tmp_path / "page.png")
        quiet(view, page)
        assert image.shape[1] == width
        assert image.shape[0] == view.evaluate("document.documentElement.scrollHeight")
        # not blank: paper, cards, ink and the lines of both arms are there
        share = {name: count(image, colors[name]) / image[..., 0].size for name in ("page", "card")}
        assert 0.02 < share["page"] < 0.9
        assert 0.1 < share["card"] < 0.95
        assert count(image, colors["ink"]) > 200
        for arm in arms[:2]:
            assert count(image, arm) > 500
        # in every frame there are lines
        frames = view.evaluate(
            "[...document.querySelectorAll('.frame')].map(f => f.getBoundingClientRect().toJSON())"
        )
        assert len(frames) == 10
        for box in frames:
            left, top = int(box["left"]), int(box["top"])
            assert box["width"] >= width / 2.8 * (width < 600) + 150 * (width > 600)
            drawn = image[top : top + int(box["height"]), left : left + int(box["width"])]
            assert sum(count(drawn, arm) for arm in arms[:2]) > 50


@pytest.mark.parametrize("width", [*WIDTHS, NARROWEST])
def test_nothing_is_cut_off(width: int, browser: Browser, page: Path) -> None:
    with browser.view(width) as view:
        view.open(page)
        assert view.evaluate("document.documentElement.scrollWidth") == width
        # headings, labels and ticks lie on their cards; labels end before the card does
        outside = view.evaluate(
            """[...document.querySelectorAll("figure.panel")].flatMap(figure => {
              const card = figure.getBoundingClientRect();
              return [...figure.querySelectorAll("h3, p, span, b")].filter(text => {
                const box = text.getBoundingClientRect();
                return box.width && (box.left < card.left - 1 || box.right > card.right + 1);
              }).map(text => text.textContent);
            })"""
        )
        assert outside == []
        sizes = view.evaluate(
            "[...document.querySelectorAll('.plot span')].map(s => parseFloat(getComputedStyle(s).fontSize))"
        )
        assert min(sizes) >= 12


def test_a_pointer_and_arrow_keys_read_values(browser: Browser, page: Path) -> None:
    with browser.view(1280) as view:
        view.open(page)
        box = view.evaluate("document.querySelector('.frame').getBoundingClientRect().toJSON()")
        tip = "document.querySelector('.tip').innerText"
        view.move(box["left"] + box["width"] / 2, box["top"] + 50)
        said = view.evaluate(tip).split("\n")
        assert said[0] == "step 200"
        assert [line for line in said if line.startswith("one rate")]
        view.move(5, 5)
        assert view.evaluate(tip) == ""
        view.evaluate("document.querySelector('.frame').focus()")
        for _ in range(2):
            view.press("ArrowRight")
        assert view.evaluate(tip).startswith("step 280")
        view.press("Escape")
        assert view.evaluate(tip) == ""
        quiet(view, page)


def test_arms_are_hidden_and_shown(browser: Browser, page: Path) -> None:
    seen = "[...document.querySelectorAll('path[data-arm=\"1\"]')].filter(p => p.getClientRects().length).length"
    with browser.view(1280) as view:
        view.open(page)
        before = view.evaluate(seen)
        assert before >= 10
        for pressed, left in (("false", 0), ("true", before)):
            view.evaluate("document.querySelectorAll('.arms button')[1].click()")
            assert view.evaluate(seen) == left
            state = "document.querySelectorAll('.arms button')[1].ariaPressed"
            assert view.evaluate(state) == pressed
        quiet(view, page)


@pytest.mark.parametrize(
    "options",
    [
        {"arms": (HOSTILE, "b"), "text": HOSTILE},
        {"arms": ("alone",), "clips": False},
        {"made": 100, "diverges": "one rate"},
        {"arms": tuple(f"a long name of arm {i}" for i in range(12)), "steps": 60},
    ],
    ids=["hostile", "alone", "interrupted", "many"],
)
def test_other_runs_are_quiet_too(options: dict, browser: Browser, tmp_path: Path) -> None:
    record(tmp_path, **options)
    page = write(tmp_path)
    with browser.view(390) as view:
        view.open(page)
        quiet(view, page)
        assert view.evaluate("document.scripts.length") == 2
        assert view.evaluate("document.images.length") == 0
        assert view.evaluate("document.documentElement.scrollWidth") == 390
        assert view.evaluate("document.querySelectorAll('.tip').length") >= 5  # the script ran


def test_a_planted_error_and_request_are_found(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    """What the other tests rely on."""
    planted = tmp_path / "planted.html"
    planted.write_text(
        "<!doctype html><img src=missing.png><script>console.log('said'); undefined_name()</script>"
    )
    with browser.view(390) as view:
        view.open(planted)
        image = view.screenshot()
        assert "undefined_name" in " ".join(view.console)
        assert "said" in " ".join(view.console)
        assert any(address.endswith("missing.png") for address in view.requests)
        assert count(image, "#ffffff") > 0.9 * image[..., 0].size
        # and the policy of the page lets no other script run
        view.open(page)
        view.console.clear()
        view.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
        )
        assert view.evaluate("window.ran") is None
        assert "Content Security Policy" in " ".join(view.console)
