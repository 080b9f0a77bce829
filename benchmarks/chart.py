"""A bar chart of every timed row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .chart_panel import INK, VERDICT, VERDICT_LINE, WIDTH, Panel
from .chart_sheet import Sheet
from .preparation import TIMED
from .report import heading

EXPLANATION = (
    "Time of one AdamW step, or of the work that a title names: median, p20 to p80"
    " (3x: three times as fast as torch fused)"
)
HEADING = {"fontsize": 11.5, "color": INK, "va": "top"}
# inches
HEADING_LINE, MARGIN, BETWEEN = 0.22, 0.12, 0.4


def figure_of(result: dict[str, Any]) -> Any | None:
    """Return the chart of a run, a matplotlib figure; None if nothing was timed."""
    rows = [
        r for r in result["rows"] if any(e.get("status") == TIMED for e in r.get("entries", []))
    ]
    if not rows:
        return None
    sheet = Sheet()
    panels = [Panel(row, sheet) for row in rows]
    columns = min(2, len(panels))
    room = WIDTH * columns + BETWEEN * (columns - 1)
    explanation = sheet.wrapped(EXPLANATION, HEADING, room)
    footer = [
        line for text in heading(result).splitlines() for line in sheet.wrapped(text, VERDICT, room)
    ]
    tops, down = [], MARGIN + HEADING_LINE * len(explanation) + BETWEEN / 2
    for i in range(0, len(panels), columns):
        tops.append(down)
        down += max(panel.height for panel in panels[i : i + columns]) + BETWEEN
    sheet.resize(room + 2 * MARGIN, down + VERDICT_LINE * len(footer) + MARGIN)
    for i, line in enumerate(explanation):
        sheet.write(MARGIN, MARGIN + HEADING_LINE * i, line, HEADING)
    names = max(panel.names for panel in panels)
    for i, panel in enumerate(panels):
        panel.draw(MARGIN + (WIDTH + BETWEEN) * (i % columns), tops[i // columns], names)
    for i, line in enumerate(footer):
        sheet.write(MARGIN, down + VERDICT_LINE * i, line, VERDICT)
    return sheet.figure


def draw(result: dict[str, Any], path: Path) -> bool:
    """Write the chart to `path`; return False if nothing was timed. Needs matplotlib."""
    figure = figure_of(result)
    if figure is None:
        return False
    figure.savefig(path)
    return True
