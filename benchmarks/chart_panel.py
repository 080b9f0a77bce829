"""One panel of the chart: the bars of a row, under its name and its verdicts."""

from __future__ import annotations

from typing import Any

from . import backward, bandwidth
from .chart_sheet import Sheet
from .formatting import duration, verdict
from .preparation import TIMED

OURS, TORCH, PEER, FLOOR = "#c2410c", "#334155", "#94a3b8", "#d6d3d1"
COLOURS = {"ours": OURS, "torch": TORCH, "peer": PEER}
INK, FAINT = "#1c1917", "#78716c"
# a bar longer than this many times torch fused is cut, and its label says so
CUT = 2.5
# inches: a panel with the names of its bars, and the heights of its lines
WIDTH, BAR_LINE, TITLE_LINE, VERDICT_LINE = 6.4, 0.27, 0.2, 0.16
TITLE = {"fontsize": 10, "fontweight": "bold", "color": INK, "va": "top"}
VERDICT = {"fontsize": 8, "color": FAINT, "va": "top"}
LABEL = {"fontsize": 8.5, "color": INK}
OUR_LABEL = {"fontsize": 8.5, "color": OURS, "fontweight": "bold"}


def _bars(row: dict[str, Any]) -> list[dict[str, Any]]:
    # our reference is written to be read, and competes with nobody
    timed = [e for e in row["entries"] if e["status"] == TIMED and e["name"] != "ours reference"]
    bars = [e | {"colour": COLOURS[e["family"]], "label": e["name"]} for e in timed]
    if "states" in row:
        for bar in bars:
            bar["label"] += f", {bar['stored_bytes_per_parameter']:.1f} B"
    bars.sort(key=lambda bar: bar["p50_ns"])
    for name, times in row["apart"].items():
        # a failed or noisy measurement is in the table only
        if "p50_ns" not in times or not times["load"]["quiet"]:
            continue
        above = next((i for i, b in enumerate(bars) if b["name"] == name), None)
        if above is not None:
            colour = bars[above]["colour"]
            bars.insert(
                above + 1, times | {"colour": colour, "label": f"{name}, apart", "name": ""}
            )
    # the copy's bar would say the same as the stream's
    floors = {bandwidth.STREAM: "bare stream, 28 B/parameter", backward.NO_STEP: backward.NO_STEP}
    for name, label in floors.items():
        if name in row["probes"]:
            bars.append(row["probes"][name] | {"colour": FLOOR, "label": label})
    return bars


def _ratio(bar: dict[str, Any]) -> str:
    ratio = bar.get("times_torch_fused")
    if ratio is None or bar.get("name") == "torch fused":
        return ""
    if ratio < 1:
        # one decimal would make nothing of a thirtieth
        return f"   {ratio:.2f}x" if ratio >= 0.01 else f"   {ratio:.1g}x"
    return f"   {ratio:.1f}x" if ratio < 10 else f"   {ratio:.0f}x"


def _verdicts(targets: list[dict[str, Any]]) -> str:
    """Return the targets against torch; each bound once, with the results of all that it holds for."""
    texts_by_bound: dict[float, list[str]] = {}
    for t in targets:
        if t["quantity"] == "torch fused" and t["value"] is not None:
            # targets of older runs have no name
            name = (t.get("contestant") or "").removeprefix("ours ")
            text = f"{name} {t['value']:.2f}x, {verdict(t['met']).lower()}".strip()
            texts_by_bound.setdefault(t["bound"], []).append(text)
    return "; ".join(
        f"target {bound:g}x torch fused: {'; '.join(texts)}"
        for bound, texts in texts_by_bound.items()
    )


def mark_cut(axes: Any, y: float, end: float) -> None:
    """Break a bar that is cut at `end` by two slanted white lines, so that it looks cut."""
    for place in (0.955, 0.972):
        axes.plot(
            [place * end - 0.006 * end, place * end + 0.006 * end],
            [y + 0.42, y - 0.42],
            color="white",
            linewidth=2,
        )


def _style(bar: dict[str, Any]) -> dict[str, Any]:
    return OUR_LABEL if bar["colour"] == OURS else LABEL


class Panel:
    """A row of the run, measured before it is drawn: panels of one chart share the room for the names of bars."""

    def __init__(self, row: dict[str, Any], sheet: Sheet) -> None:
        self._bars, self._sheet = _bars(row), sheet
        self._title = sheet.wrapped(row["name"], TITLE, WIDTH)
        self._verdicts = sheet.wrapped(_verdicts(row["targets"]), VERDICT, WIDTH)
        self._head = TITLE_LINE * len(self._title) + VERDICT_LINE * len(self._verdicts) + 0.08
        self.names = 0.1 + max(sheet.width_of(b["label"], _style(b)) for b in self._bars)
        self.height = self._head + BAR_LINE * len(self._bars)

    def draw(self, left: float, top: float, names: float) -> None:
        """Draw with the upper left corner there; the names of bars take `names` inches."""
        y = top
        for line in self._title:
            self._sheet.write(left, y, line, TITLE)
            y += TITLE_LINE
        for line in self._verdicts:
            self._sheet.write(left, y, line, VERDICT)
            y += VERDICT_LINE
        room = WIDTH - names
        axes = self._sheet.axes(left + names, top + self._head, room, self.height - self._head)
        self._draw_bars(axes, room)

    def _draw_bars(self, axes: Any, room: float) -> None:
        bars, medians = self._bars, [bar["p50_ns"] for bar in self._bars]
        fused = next((b["p50_ns"] for b in bars if b.get("name") == "torch fused"), medians[0])
        longest = min(max(b["p80_ns"] for b in bars), CUT * max(fused, min(medians)))
        limit = longest
        for y, bar in enumerate(bars):
            median, style, is_cut = bar["p50_ns"], _style(bar), bar["p50_ns"] > longest
            axes.barh(y, min(median, longest), color=bar["colour"], height=0.66)
            if is_cut:
                mark_cut(axes, y, longest)
            else:
                spread = [[median - bar["p20_ns"]], [min(bar["p80_ns"], longest) - median]]
                axes.errorbar(
                    median, y, xerr=spread, fmt="none", ecolor=FAINT, elinewidth=1, capsize=2
                )
            end = min(max(bar["p80_ns"], median), longest)
            text = "  " + duration(median) + _ratio(bar) + (" (bar cut)" if is_cut else "")
            axes.text(end, y, text, va="center", **style)
            # the scale leaves room for the text behind each bar
            limit = max(limit, end / (1 - (self._sheet.width_of(text, style) + 0.05) / room))
        axes.set_yticks(range(len(bars)), [bar["label"] for bar in bars])
        for tick, bar in zip(axes.get_yticklabels(), bars, strict=True):
            tick.set(**_style(bar))
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, limit)
        axes.set_xticks([])
        axes.tick_params(length=0)
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
        axes.spines["left"].set_color(FAINT)
