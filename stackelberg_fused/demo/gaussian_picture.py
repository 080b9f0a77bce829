"""The picture of the Gaussians: the photograph, and what each side has made of it at three moments of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import write_atomically
from .gaussian_fit import Size
from .gaussian_model import photograph, raster, render, unpack

FINER = 4  # times as many pixels in each direction as the photograph that is fitted
CHUNK = 8192  # pixels that are rendered at a time
INK, MUTED = "#1e293b", "#64748b"
# by the name of an optimizer
TITLES = {"one rate": "one rate for all", "by kind": "rates by kind"}
COLORS = {"one rate": "#334155", "by kind": "#c2410c"}

Sides = Mapping[str, Sequence[Mapping[str, Any]]]


def picture(packed: dict[str, str], height: int, width: int) -> Tensor:
    """Return the Gaussians as an image, [height, width, 3]."""
    pixels, params = raster(height, width), unpack(packed)
    with torch.no_grad():
        parts = [
            render(params, pixels[slice(first, first + CHUNK)])
            for first in range(0, height * width, CHUNK)
        ]
    return torch.cat(parts).clamp(0.0, 1.0).view(height, width, 3)


def draw(path: Path, size: Size, sides: Sides, remark: str) -> None:
    """Write the picture, as a PNG of 1520 x 590 pixels.

    Args:
        sides: by the names in TITLES: what `fit` returned for each seed, the first with pictures.
        remark: how the rates came about, for the small print.
    """
    from matplotlib.figure import Figure

    moments = [str(step) for step in size.shown]
    figure = Figure(figsize=(15.2, 5.9), facecolor="white")
    grid = figure.add_gridspec(
        2, 1 + len(moments), left=0.012, right=0.988, top=0.935, bottom=0.065, wspace=0.03, hspace=0.13,
    )  # fmt: skip
    target = figure.add_subplot(grid[0, 0])
    photo = photograph(size.height, size.width).view(size.height, size.width, 3)
    _show(target, photo, "bicubic")
    target.set_title("the photograph", fontsize=13, color=INK, pad=7)
    _draw_curves(figure.add_subplot(grid[1, 0]), sides)
    for row, (name, title) in enumerate(TITLES.items()):
        first = sides[name][0]
        for column, moment in enumerate(moments, start=1):
            axis = figure.add_subplot(grid[row, column])
            shape = FINER * size.height, FINER * size.width
            _show(axis, picture(first["pictures"][moment], *shape), "antialiased")
            axis.text(
                0.025, 0.045, f"{title}   {first['psnr'][moment]:.1f} dB", transform=axis.transAxes,
                fontsize=11.5, color="white",
                bbox={"facecolor": COLORS[name], "edgecolor": "none", "pad": 4.5, "alpha": 0.92},
            )  # fmt: skip
            if row == 0:
                axis.set_title(f"after {moment} steps", fontsize=13, color=INK, pad=7)
    count = len(sides["one rate"])
    note = (
        f"{size.first} to {size.last} Gaussians, {size.height} x {size.width} pixels, the first of "
        f"{count} seeds; {remark}. Curves: mean and range of all seeds"
    )
    figure.text(0.988, 0.02, note, fontsize=8.5, color=MUTED, ha="right")
    write_atomically(path, lambda partial: figure.savefig(partial, dpi=100, format="png"))


def _show(axis: Any, image: Tensor, interpolation: str) -> None:
    axis.imshow(image.numpy(), interpolation=interpolation)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _draw_curves(axis: Any, sides: Sides) -> None:
    """Plot PSNR by step."""
    for name, title in TITLES.items():
        found = [run["psnr"] for run in sides[name]]
        steps = [int(step) for step in found[0]]
        curves = torch.tensor([list(curve.values()) for curve in found])
        lows, highs = (pick(dim=0).values for pick in (curves.min, curves.max))
        axis.fill_between(steps, lows, highs, color=COLORS[name], alpha=0.18, lw=0)
        axis.plot(steps, curves.mean(0), color=COLORS[name], lw=2, label=title)
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
