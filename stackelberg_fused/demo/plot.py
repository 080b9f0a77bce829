"""Draw loss.png: the validation curves of all runs, and the gap of each to the control."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .checkpoint import write_atomically

CONTROL = "#3a3a3a"
RATIOS = ("#7fb3d5", "#2a9d8f", "#e9a03b", "#d1495b", "#7b4fa3", "#8c6d46")


def draw(path: Path, records: list[dict[str, Any]], loss_unit: str, title: str) -> None:
    """Write the plot as a PNG of 1500 x 720 pixels.

    Args:
        path: the file.
        records: `Trainer.record` of each run, the control first.
        loss_unit: the label of the loss axis.
        title: the title of the figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    style = {
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(style):
        figure, (curves, gaps) = plt.subplots(
            1, 2, figsize=(10, 4.8), width_ratios=(3, 2), layout="constrained"
        )
        control = records[0]["validation"]
        # The loss of the first tenth starts at that of a guess: in the range of the axis it would flatten the rest.
        first = next(i for i, point in enumerate(control) if point[0] >= 0.1 * control[-1][0])
        for index, record in enumerate(records):
            steps, losses, _ = zip(*record["validation"], strict=True)
            curves.plot(
                steps[1:], losses[1:], label=f"{record['name']}: {losses[-1]:.4f}", **_style(index)
            )
            if index:
                gap = [
                    100 * (loss / point[1] - 1) for loss, point in zip(losses, control, strict=True)
                ]
                gaps.plot(steps[1:], gap[1:], **_style(index))
        gaps.axhline(0, **_style(0))
        shown = [point[1] for r in records for point in r["validation"][first:]]
        finite = [loss for loss in shown if math.isfinite(loss)] or [0.0, 1.0]
        low, high = min(finite), max(finite)
        curves.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        curves.set_title("Validation loss", loc="left")
        curves.set_ylabel(loss_unit)
        curves.legend(frameon=False, title="run: final loss", alignment="left")
        gaps.set_title("Against torch AdamW (below 0 is better)", loc="left")
        gaps.yaxis.set_major_formatter(lambda x, _: f"{x:+g} %" if x else "0 %")
        for axes in (curves, gaps):
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.grid(color="#e6e6e6", linewidth=0.8)
            axes.set_axisbelow(True)
            axes.margins(x=0.01)
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        write_atomically(path, lambda partial: figure.savefig(partial, dpi=150, format="png"))
        plt.close(figure)


def _style(index: int) -> dict[str, Any]:
    """Return the line style of a run. The control is dashed and on top, so that it does not hide the others."""
    if index == 0:
        return {"color": CONTROL, "linewidth": 2, "linestyle": (0, (3, 2)), "zorder": 3}
    return {"color": RATIOS[(index - 1) % len(RATIOS)], "linewidth": 1.8}
