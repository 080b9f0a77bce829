"""The common style of the plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = ("#c2410c", "#334155", "#0f766e", "#7c3aed", "#ca8a04", "#be185d", "#64748b")


def new_figure(columns: int, rows: int = 1, height: float = 3.8) -> tuple[Any, list[Any]]:
    """Create a figure with one or more rows of axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def save(figure: Any, path: Path, note: str) -> None:
    """Write a plot with a line that tells how to read it."""
    figure.supxlabel(note, fontsize=8, color="#64748b")
    figure.savefig(path, dpi=130)
