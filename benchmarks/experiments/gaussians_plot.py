"""The picture of the Gaussians: the photograph, and what each arm has made of it at three moments of training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .experiment import Cells
from .gaussian_model import photograph, raster, render, unpack
from .plot_style import COLORS

if TYPE_CHECKING:
    from .gaussians import Arm, Gaussians

FINER = 4  # times as many pixels in each direction as the photograph that is fitted
CHUNK = 8192  # pixels that are rendered at a time
INK, MUTED = "#1e293b", "#64748b"
TITLES = {"one rate": "one rate for all", "by kind": "rates by kind"}


def picture(packed: dict[str, str], height: int, width: int) -> Tensor:
    """Return the Gaussians of a cell as an image, [height, width, 3]."""
    pixels, params = raster(height, width), unpack(packed)
    with torch.no_grad():
        parts = [
            render(params, pixels[slice(first, first + CHUNK)])
            for first in range(0, height * width, CHUNK)
        ]
    return torch.cat(parts).clamp(0.0, 1.0).view(height, width, 3)


def draw(experiment: Gaussians, cells: Cells, path: Path) -> None:
    """Write the picture."""
    from matplotlib.figure import Figure

    size = experiment.size
    moments = [str(step) for step in size.shown]
    figure = Figure(figsize=(15.2, 5.9), facecolor="white")
    grid = figure.add_gridspec(
        2, 1 + len(moments), left=0.012, right=0.988, top=0.935, bottom=0.065, wspace=0.03, hspace=0.13,
    )  # fmt: skip
    target = figure.add_subplot(grid[0, 0])
    photo = photograph(size.height, size.width).view(size.height, size.width, 3)
    _show(target, photo, "bicubic")
    target.set_title("the photograph", fontsize=13, color=INK, pad=7)
    _draw_curves(figure.add_subplot(grid[1, 0]), experiment, cells)
    arms = [experiment.pictured(cells, optimizer) for optimizer in TITLES]
    for row, (arm, color) in enumerate(zip(arms, COLORS[1::-1], strict=False)):
        cell = cells[arm.key(experiment.best(cells, arm), experiment.seeds[0])]
        for column, moment in enumerate(moments, start=1):
            axis = figure.add_subplot(grid[row, column])
            shape = FINER * size.height, FINER * size.width
            _show(axis, picture(cell["pictures"][moment], *shape), "antialiased")
            label = f"{TITLES[arm.optimizer]}   {cell['psnr'][moment]:.1f} dB"
            axis.text(
                0.025, 0.045, label, transform=axis.transAxes, fontsize=11.5, color="white",
                bbox={"facecolor": color, "edgecolor": "none", "pad": 4.5, "alpha": 0.92},
            )  # fmt: skip
            if row == 0:
                axis.set_title(f"after {moment} steps", fontsize=13, color=INK, pad=7)
    note = (
        f"{size.first} to {size.last} Gaussians, {size.height} x {size.width} pixels, the first of "
        f"{len(experiment.seeds)} seeds; each arm at its own best rates of as many tuning runs. "
        "Curves: mean and range of all seeds"
    )
    figure.text(0.988, 0.02, note, fontsize=8.5, color=MUTED, ha="right")
    figure.savefig(path, dpi=100)


def _show(axis: Any, image: Tensor, interpolation: str) -> None:
    axis.imshow(image.numpy(), interpolation=interpolation)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw_curves(axis: Any, experiment: Gaussians, cells: Cells) -> None:
    """Plot PSNR by step of the arms in the picture."""
    for optimizer, color in zip(TITLES, COLORS[1::-1], strict=False):
        arm = experiment.pictured(cells, optimizer)
        steps, curves = _curves(experiment, cells, arm)
        lows, highs = (pick(dim=0).values for pick in (curves.min, curves.max))
        axis.fill_between(steps, lows, highs, color=color, alpha=0.18, lw=0)
        axis.plot(steps, curves.mean(0), color=color, lw=2, label=TITLES[optimizer])
    axis.legend(loc="lower right", frameon=False, fontsize=10.5, labelcolor="linecolor")
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(MUTED)
    axis.tick_params(colors=MUTED, labelsize=9)
    axis.grid(alpha=0.25)
    axis.margins(x=0.02)
    axis.set_xlabel("steps", color=MUTED, fontsize=9.5, labelpad=1)
    axis.set_title("PSNR of the whole picture, dB", color=INK, fontsize=10.5, loc="left", pad=4)
    box = axis.get_position()
    axis.set_position([box.x0 + 0.018, box.y0 + 0.03, box.width - 0.026, box.height - 0.06])


def _curves(experiment: Gaussians, cells: Cells, arm: Arm) -> tuple[list[int], Tensor]:
    """Steps, and PSNR [seeds, steps]."""
    exponent = experiment.best(cells, arm)
    found = [cells[arm.key(exponent, seed)]["psnr"] for seed in experiment.seeds]
    return [int(step) for step in found[0]], torch.tensor([list(of.values()) for of in found])
