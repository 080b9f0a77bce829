"""Colors can be read: the contrast of WCAG 2, 4.5 for text."""

from __future__ import annotations

import pytest

from stackelberg_fused.report.page_style import DARK, DARK_ARMS, LIGHT, LIGHT_ARMS


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colors, arms", [(LIGHT, LIGHT_ARMS), (DARK, DARK_ARMS)])
def test_text_can_be_read(colors: dict[str, str], arms: tuple[str, ...]) -> None:
    for ink in (colors["ink"], colors["muted"], colors["warn"], *arms):
        for paper in (colors["card"], colors["page"]):
            assert contrast(ink, paper) >= 4.5, (ink, paper)


def test_both_have_the_same_names() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert len(LIGHT_ARMS) == len(DARK_ARMS) == len({*LIGHT_ARMS}) == len({*DARK_ARMS})
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
