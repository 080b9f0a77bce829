"""A bar chart of every timed row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import backward, bandwidth
from .formatting import duration, verdict
from .preparation import TIMED
from .report import heading

OURS, TORCH, PEER, FLOOR = "#c2410c", "#334155", "#94a3b8", "#d6d3d1"
COLOURS = {"ours": OURS, "torch": TORCH, "peer": PEER}
INK, FAINT = "#1c1917", "#78716c"
# a bar longer than this many times torch fused is cut, and its label says so
CUT = 2.5


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


def _panel(axes: Any, row: dict[str, Any]) -> None:
    bars = _bars(row)
    fused = next((b["p50_ns"] for b in bars if b.get("name") == "torch fused"), bars[0]["p50_ns"])
    longest = min(max(b["p80_ns"] for b in bars), CUT * max(fused, min(b["p50_ns"] for b in bars)))
    for y, bar in enumerate(bars):
        median = bar["p50_ns"]
        shown = min(median, longest)
        ours = bar["colour"] == OURS
        axes.barh(y, shown, color=bar["colour"], height=0.66)
        if median > longest:
            mark_cut(axes, y, longest)
        if median <= longest:
            spread = [[median - bar["p20_ns"]], [min(bar["p80_ns"], longest) - median]]
            axes.errorbar(median, y, xerr=spread, fmt="none", ecolor=FAINT, elinewidth=1, capsize=2)
        end = min(max(bar["p80_ns"], median), longest)
        cut = " (bar cut)" if median > longest else ""
        axes.text(
            end + 0.015 * longest,
            y,
            " " + duration(median) + _ratio(bar) + cut,
            va="center",
            fontsize=8.5,
            color=OURS if ours else INK,
            fontweight="bold" if ours else "normal",
        )
    axes.set_yticks(range(len(bars)), [b["label"] for b in bars], fontsize=8.5, color=INK)
    for tick, bar in zip(axes.get_yticklabels(), bars, strict=True):
        if bar["colour"] == OURS:
            tick.set_fontweight("bold")
            tick.set_color(OURS)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * longest)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(FAINT)
    axes.set_title(row["name"], loc="left", fontsize=10, fontweight="bold", color=INK, pad=14)
    axes.text(
        0,
        1.015,
        _verdicts(row["targets"]),
        transform=axes.transAxes,
        fontsize=8,
        color=FAINT,
        va="bottom",
    )


def draw(result: dict[str, Any], path: Path) -> bool:
    """Write the chart to `path`; return False if nothing was timed. Needs matplotlib."""
    from matplotlib.figure import Figure

    rows = [
        r for r in result["rows"] if any(e.get("status") == TIMED for e in r.get("entries", []))
    ]
    if not rows:
        return False
    columns = 2 if len(rows) > 1 else 1
    heights = [
        max(len(_bars(row)) for row in rows[i : i + columns]) for i in range(0, len(rows), columns)
    ]
    height = 0.27 * sum(heights) + 0.95 * len(heights) + 0.9
    figure = Figure(figsize=(6.6 * columns, height), dpi=150)
    figure.patch.set_facecolor("white")
    grid = figure.subplots(
        len(heights),
        columns,
        squeeze=False,
        gridspec_kw={"height_ratios": [h + 1 for h in heights]},
    )
    for axes, row in zip(grid.flat, rows, strict=False):
        _panel(axes, row)
    for axes in grid.flat[len(rows) :]:
        axes.set_axis_off()
    title = figure.suptitle(
        "Time of one AdamW step, or of the work that a title names: median, p20 to p80"
        " (3x: three times as fast as torch fused)",
        x=0.01,
        y=1 - 0.1 / height,
        ha="left",
        va="top",
        fontsize=11.5,
        color=INK,
    )
    footer = figure.text(0.01, 0.06 / height, heading(result), fontsize=8, color=FAINT, va="bottom")
    for text in (title, footer):
        text.set_in_layout(False)
    # title and footer keep their height, however large the figure is
    figure.tight_layout(rect=(0, 0.25 / height, 1, 1 - 0.35 / height), w_pad=3, h_pad=2)
    figure.savefig(path)
    return True
