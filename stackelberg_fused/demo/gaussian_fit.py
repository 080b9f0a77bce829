"""The fit of a photograph by Gaussians that grow in number: one run with one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .gaussian_model import begin, densify, pack, photograph, psnr, raster, render, sample
from .gaussian_optimizers import GaussianOptimizer

LAST_SHARE = 0.05  # of the rates, at the end of those that fall


@dataclass(frozen=True)
class Size:
    """How much there is to do.

    Attributes:
        height, width: of the image, in pixels.
        first, last: Gaussians at the beginning, and when they do not grow in number any more.
        steps: of a run; in the first half of them Gaussians grow in number.
        every: steps from one time that they do to the next.
        shown: steps after which there is a picture.
    """

    height: int = 96
    width: int = 144
    first: int = 64
    last: int = 256
    steps: int = 400
    every: int = 40
    shown: tuple[int, ...] = (40, 120, 400)


QUICK = Size(24, 36, 16, 32, 60, 10, (10, 30, 60))


def factor(schedule: str, step: int, steps: int) -> float:
    """Return the share of the rates at a step; those that fall do so along a cosine, in the second half."""
    if schedule == "constant" or step <= steps // 2:
        return 1.0
    over = (step - steps // 2) / (steps - steps // 2)
    return LAST_SHARE + (1.0 - LAST_SHARE) * 0.5 * (1.0 + math.cos(math.pi * over))


def fit(
    optimizer_class: type[GaussianOptimizer],
    rates: Mapping[str, float],
    schedule: str,
    seed: int,
    size: Size,
    keeps_pictures: bool = False,
    after_step: Callable[[int], object] = lambda step: None,
) -> dict[str, Any]:
    """Fit the image once; return PSNR in dB by step, and the Gaussians at the moments to show.

    Args:
        rates: by kind.
        schedule: "constant" or "falling".
        seed: of the start and of the pixels that each step sees.
        after_step: called with the number of each step; what it raises ends the run.
    """
    generator = torch.Generator().manual_seed(seed)
    image, pixels = photograph(size.height, size.width), raster(size.height, size.width)
    optimizer = optimizer_class(begin(size.first, size.width / size.height, generator), rates)
    grows = range(size.every, size.steps // 2 + 1, size.every)
    pulls, curve, pictures = torch.zeros(size.first), {}, {}
    for step in range(1, size.steps + 1):
        seen = sample(size.height, size.width, generator)
        loss = (render(optimizer.params, pixels[seen]) - image[seen]).square().mean()
        loss.backward()
        pull = optimizer.params["position"].grad
        assert pull is not None
        pulls += pull.norm(dim=1)
        optimizer.set_factor(factor(schedule, step, size.steps))
        optimizer.step()
        if step % size.every == 0 or step in size.shown:
            curve[str(step)] = round(psnr(optimizer.params, pixels, image), 4)
        if keeps_pictures and step in size.shown:
            pictures[str(step)] = pack(optimizer.params)
        if step in grows:
            wanted = size.first + (size.last - size.first) * step // grows[-1]
            optimizer.replace(*densify(optimizer.params, pulls, wanted, generator))
            pulls = torch.zeros(len(optimizer.params["position"]))
        after_step(step)
    return {
        "psnr": curve,
        "gaussians": len(optimizer.params["position"]),
        "launches": optimizer.launches,
        **({"pictures": pictures} if pictures else {}),
    }
