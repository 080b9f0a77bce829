"""The chart of a run: every text lies inside the picture, and on no other text."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from paths import RESULTS
from stackelberg_fused.benchmarks import chart
from stackelberg_fused.benchmarks.chart_sheet import Sheet

pytest.importorskip("matplotlib")


def extents(figure: Any) -> dict[str, Any]:
    from matplotlib.text import Text

    figure.canvas.draw()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return {f"{i}: {t.get_text()}": t.get_window_extent() for i, t in enumerate(texts)}


@pytest.mark.parametrize("committed", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_text_can_be_read(committed):
    figure = chart.figure_of(json.loads(committed.read_text()))
    boxes, picture = extents(figure), figure.bbox
    for text, box in boxes.items():
        assert picture.x0 <= box.x0 <= box.x1 <= picture.x1, text
        assert picture.y0 <= box.y0 <= box.y1 <= picture.y1, text
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        # a line may touch the next one's box, whose edge is above its letters
        apart = a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 + 2 or b.y1 <= a.y0 + 2
        assert apart, (one, other)


def test_nothing_timed_makes_no_chart(tmp_path):
    rows = [{"name": "a row", "reason": "time budget spent"}]
    assert not chart.draw({"rows": rows}, tmp_path / "bench.png")
    assert not (tmp_path / "bench.png").exists()


def test_a_text_is_broken_where_the_room_ends():
    sheet, style = Sheet(), {"fontsize": 10}
    text = "each line holds as many words as there is room for"
    room = sheet.width_of("as many words as", style)
    lines = sheet.wrapped(text, style, room)
    assert " ".join(lines) == text
    assert all(sheet.width_of(line, style) <= room for line in lines)
    for line, following in itertools.pairwise(lines):
        assert sheet.width_of(f"{line} {following.split()[0]}", style) > room
    assert sheet.wrapped("", style, room) == []
    # a word that is longer than the room gets a line of its own
    assert sheet.wrapped("a longer-than-the-room-of-one-line b", style, room)[1].startswith(
        "longer"
    )
