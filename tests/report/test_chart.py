"""A chart's lines and labels."""

from __future__ import annotations

import itertools
import json
import math
import re

from hypothesis import given
from hypothesis import strategies as st

from stackelberg_fused.report.chart import HEIGHT, LABEL, chart, description, json_in_html, spread
from stackelberg_fused.report.page_style import STYLE
from stackelberg_fused.report.panels import Line, Panel
from stackelberg_fused.report.scale import Scale

STEPS = Scale(0.0, 100.0)
LINEAR = Scale(0.0, 10.0)


def paths(line: Line, scale: Scale = LINEAR) -> list[str]:
    return re.findall(r' d="([^"]*)"', chart(Panel("T", "", [line], scale), 0, STEPS, 1))


def test_a_line_goes_through_its_points_and_breaks_where_they_have_no_place() -> None:
    points = [(0, 0.0), (50, 5.0), (60, math.nan), (70, 10.0), (80, math.inf), (100, 2.5)]
    assert paths(Line(0, "a", points)) == ["M0 1000L500 500M700 0h0M1000 750h0"]
    # far outside of the frame numbers stay small
    assert paths(Line(0, "a", [(0, 1e300), (100, -1e300)])) == ["M0 -3000L1000 4000"]
    assert paths(Line(0, "a", [(0, 1.0), (100, 0.0)]), Scale(0.1, 10.0, log=True)) == ["M0 500h0"]


def test_measurements_are_dots() -> None:
    assert paths(Line(0, "a", [(0, 0.0), (100, 10.0)], dots=True)) == [
        "M0 1000L1000 0",
        "M0 1000h0M1000 0h0",
    ]


@given(st.lists(st.floats(0, HEIGHT), max_size=12))
def test_labels_do_not_cover_each_other(wanted: list[float]) -> None:
    places = spread(sorted(wanted))
    assert len(places) == len(wanted)
    assert all(b - a >= LABEL - 1e-6 for a, b in itertools.pairwise(places))
    assert all(-LABEL <= place <= HEIGHT + 1e-6 for place in places)


def test_labels_with_room_stay_where_their_lines_end() -> None:
    assert spread([10.0, 100.0, 200.0]) == [10.0, 100.0, 200.0]
    assert spread([100.0, 100.0]) == [100.0 - LABEL / 2, 100.0 + LABEL / 2]
    assert spread([220.0, 220.0]) == [205.0, 220.0]


def test_readers_who_do_not_see_the_lines_are_told_their_ends() -> None:
    lines = [Line(0, "a", [(1, 4.0), (9, 2.0)]), Line(1, "b", [(1, math.nan)])]
    panel = Panel("Loss", "", lines, Scale(1.0, 10.0, log=True))
    assert description(panel) == (
        "Loss over steps on a logarithmic scale. a: 4 at step 1, 2 at step 9; b: never finite."
    )


def test_no_text_ends_the_data() -> None:
    value = ["</script><!--", "&\u2028\u2029", {"<": "é"}]
    written = json_in_html(value)
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == value


def test_the_style_sheet_has_the_height_that_labels_are_placed_for() -> None:
    assert f"grid-template:{HEIGHT}px " in STYLE
