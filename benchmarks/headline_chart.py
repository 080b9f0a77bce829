"""The README's chart: one row of a committed run, ours beside every optimizer that loops over param groups.

`python -m stackelberg_fused.benchmarks.headline_chart RESULT.json CHART.png [ROW]`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .chart_panel import COLOURS, CUT, FAINT, INK, OURS, mark_cut
from .report import heading

ROW = "465 groups x 1000, new gradients"
LABELS = {
    "ours cpu": "stackelberg_fused",
    "torch fused": "torch, fused",
    "torch foreach": "torch, foreach",
    "torch for-loop": "torch, for-loop",
    "DeepSpeed": "DeepSpeed CPU Adam",
}

FAMILIES = {
    "ours": "one launch for all groups",
    "torch": "torch.optim",
    "peer": "other libraries",
}


def draw(result: dict[str, Any], path: Path, row_name: str = ROW) -> None:
    """Write the chart of one row to `path`; needs matplotlib.

    Raises:
        ValueError: the result has no such row, or nothing in it was timed.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [row for row in result["rows"] if row["name"] == row_name]
    timed = [e for row in rows for e in row.get("entries", []) if "p50_ns" in e]
    # the reference is written to be read: no contender
    bars = sorted(
        (e for e in timed if e["name"] != "ours reference"), key=lambda entry: entry["p50_ns"]
    )
    if not bars:
        raise ValueError(f"nothing was timed in a row {row_name!r}")
    milliseconds = [bar["p50_ns"] / 1e6 for bar in bars]
    fused = next((m for m, b in zip(milliseconds, bars, strict=True) if b["name"] == "torch fused"))
    end = min(max(milliseconds), CUT * fused)
    figure = Figure(figsize=(8, 0.34 * len(bars) + 1.0), dpi=150)
    figure.patch.set_facecolor("white")
    axes = figure.subplots()
    for place, (bar, value) in enumerate(zip(bars, milliseconds, strict=True)):
        is_ours = bar["family"] == "ours"
        axes.barh(place, min(value, end), color=COLOURS[bar["family"]], height=0.68)
        if value > end:
            mark_cut(axes, place, end)
        text = f"{value:#.3g} ms" if value < 100 else f"{value:.0f} ms"
        axes.text(
            min(value, end) + 0.012 * end,
            place,
            text + (" (bar cut)" if value > end else ""),
            va="center",
            fontsize=9.5,
            color=OURS if is_ours else INK,
            fontweight="bold" if is_ours else "normal",
        )
    axes.set_yticks(
        range(len(bars)), [LABELS.get(b["name"], b["name"]) for b in bars], fontsize=9.5
    )
    for tick, bar in zip(axes.get_yticklabels(), bars, strict=True):
        tick.set_color(OURS if bar["family"] == "ours" else INK)
        tick.set_fontweight("bold" if bar["family"] == "ours" else "normal")
    families = {bar["family"] for bar in bars}
    axes.legend(
        handles=[
            Patch(color=COLOURS[family], label=FAMILIES[family])
            for family in FAMILIES
            if family in families
        ],
        loc="upper right",
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * end)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    row, top = rows[0], figure.get_figheight()
    each = row["parameters"] // row["tensors"]
    figure.text(
        0.01,
        1 - 0.3 / top,
        f"AdamW step with {row['groups']} param groups",
        fontsize=12,
        fontweight="bold",
        color=INK,
    )
    figure.text(
        0.01,
        1 - 0.53 / top,
        f"{row['tensors']} tensors of {each:,} elements; median time, shorter is better",
        fontsize=9.5,
        color=FAINT,
    )
    figure.text(0.01, 0.08 / top, heading(result), fontsize=8, color=FAINT)
    figure.tight_layout(rect=(0, 0.22 / top, 1, 1 - 0.55 / top))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), *sys.argv[3:4])
