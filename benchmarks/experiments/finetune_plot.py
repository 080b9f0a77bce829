"""The picture of the finetune experiment: what every arm gains on one tuned rate, test by test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .experiment import Cells
from .finetune_arms import HEAD_ONLY, ONE_RATE, Arm
from .finetune_data import FIRST, Task
from .plot_style import COLORS

if TYPE_CHECKING:
    from .finetune import Finetune

INK, MUTED = "#1e293b", "#64748b"
COLOR_OF = {"AdamW": COLORS[2], "SGD": COLORS[0]}
AS_IS = "as trained on"
LINE = 10  # characters of a snippet in one line
SNIPPET = 10395  # the text's example
SHOWN_DIGITS = (2, 5, 9)


def draw(experiment: Finetune, cells: Cells, path: Path) -> None:
    """Write the picture: a column for each test, an example above the gains of all arms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 6.9), facecolor="white")
    columns = [(task, test) for task in experiment.tasks for test in (None, *task.shifts)]
    arms = [arm for arm in experiment.arms if arm != ONE_RATE]
    left, right, gap, between = 0.148, 0.99, 0.012, 0.03
    width = (right - left - gap * (len(columns) - 2) - between) / len(columns)
    for number, (task, test) in enumerate(columns):
        x = left + number * (width + gap) + (between - gap) * (task != experiment.tasks[0])
        _draw_examples(figure.add_axes((x, 0.735, width, 0.165)), task, test)
        axis = figure.add_axes((x, 0.155, width, 0.57))
        _draw_gains(axis, experiment, cells, task, test, arms)
        if number == 0:
            axis.set_yticks(range(len(arms)), [short_label(arm) for arm in arms], fontsize=12)
            axis.tick_params(axis="y", colors=INK)
        figure.text(x + width / 2, 0.905, test or AS_IS, fontsize=12.5, color=INK, ha="center")
        if test is None:
            title = f"{task.name}: new classes after {task.steps} batches"
            figure.text(x, 0.953, title, fontsize=14, color=INK, weight="bold")
    middle = (left + right) / 2
    figure.text(
        middle, 0.082, "accuracy in points, compared with one tuned rate", fontsize=12, color=INK, ha="center"
    )  # fmt: skip
    seeds = " and ".join(str(len(task.seeds)) for task in experiment.tasks)
    note = (
        f"mean and 95 % interval of {seeds} paired seeds; full: a gain at p <= 0.05, times the number "
        "of arms; each arm at its own best rate,\nchosen in distribution. Per cent: of the batches that the head has "
        "for itself before all is trained, or that its best response is charged"
    )
    figure.text(0.99, 0.014, note, fontsize=9.5, color=MUTED, ha="right", linespacing=1.5)
    for number, name in enumerate(experiment.tasks[0].grids):
        figure.text(0.012, 0.87 - 0.04 * number, f"● {name}", fontsize=13, color=COLOR_OF[name])
    figure.savefig(path, dpi=130)


def short_label(arm: Arm) -> str:
    """Name an arm in few characters."""
    return arm.label.replace("% of steps), then all", "%)").replace("ratio 1, 4 head", "4")


def _draw_gains(
    axis: Any, experiment: Finetune, cells: Cells, task: Task, test: str | None, arms: list[Arm]
) -> None:
    from .finetune import LEVEL, TEST

    gains = {
        (name, arm): experiment.gain(cells, task, name, arm, test or TEST)
        for name in task.grids
        for arm in arms
    }
    others = [gain for (_, arm), gain in gains.items() if arm != HEAD_ONLY]
    reach = 1.12 * max(abs(mean) + min(half, 20.0) for mean, half, _ in others)
    reach = max(2.0, math.ceil(reach))
    for number, name in enumerate(task.grids):
        color = COLOR_OF[name]
        for row, arm in enumerate(arms):
            mean, half, p = gains[name, arm]
            y = row + 0.2 * (2 * number - len(task.grids) + 1)
            face = color if p <= LEVEL else "white"
            if abs(mean) > reach:
                edge = math.copysign(reach * 0.97, mean)
                axis.plot(edge, y, "<" if mean < 0 else ">", color=color, mfc=face, ms=6)
                side = "left" if mean < 0 else "right"
                inner = math.copysign(reach * 0.84, mean)
                axis.text(
                    inner, y, f"{mean:+.0f}", color=color, fontsize=10.5, ha=side, va="center"
                )
                continue
            axis.plot([mean - half, mean + half], [y, y], color=color, lw=1.8, alpha=0.75)
            axis.plot(mean, y, "o", color=color, mfc=face, ms=6.5, mew=1.6)
    axis.axvline(0.0, color=MUTED, lw=1.2)
    for row in range(0, len(arms), 2):
        axis.axhspan(row - 0.5, row + 0.5, color="#f1f5f9", zorder=0, lw=0)
    axis.set(xlim=(-reach, reach), ylim=(len(arms) - 0.5, -0.5), yticks=[])
    step = next(s for s in (1, 2, 5, 10, 20, 50) if reach / s < 2.6)
    most = int(0.8 * reach // step) * step  # labels of two panels keep apart
    ticks = range(-most, most + 1, step)
    axis.set_xticks(ticks, [f"{t:+d}" if t else "0" for t in ticks], fontsize=11)
    axis.tick_params(colors=MUTED, length=0)
    axis.spines[:].set_visible(False)


def _draw_examples(axis: Any, task: Task, test: str | None) -> None:
    """Show examples as a test sees them."""
    generator = torch.Generator().manual_seed(3)
    inputs, labels = task.load()

    def seen(examples: Tensor) -> Tensor:
        return examples if test is None else task.shifts[test](examples, generator)

    if task.name == "digits":
        rows = torch.stack([(labels == digit).nonzero()[1, 0] for digit in SHOWN_DIGITS])
        images = seen(inputs[rows]).view(-1, 8, 8)
        framed = torch.nn.functional.pad(images, (1, 1, 1, 1)).transpose(0, 1).flatten(1)
        axis.imshow(framed.numpy(), cmap="gray_r", vmin=0, vmax=1, aspect="auto")
        box = axis.get_position()
        tall = box.width * 13.0 / 6.9 / len(rows)
        axis.set_position((box.x0, box.y0 + (box.height - tall) / 2, box.width, tall))
    else:
        snippet = "".join(chr(FIRST + int(c)) for c in seen(inputs[SNIPPET : SNIPPET + 1])[0])
        lines = [snippet[i : i + LINE] for i in range(0, len(snippet), LINE)]
        axis.text(
            0.5, 0.51, "\n".join(lines), family="monospace", fontsize=11, color=INK, ha="center", va="center",
            linespacing=1.35, transform=axis.transAxes,
        )  # fmt: skip
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
