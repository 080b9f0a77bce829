"""An image as 2-D Gaussians in plain PyTorch, in the parametrisation of 3-D Gaussian splatting (Kerbl et al. 2023).

Gaussians lie one behind the other in the order of their rows, the first in front, on black. Coordinates are in heights
of the image, from its middle. A "kind" is a parameter of all Gaussians, [gaussians, ...], as splatting codes have it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# published rates: https://github.com/graphdeco-inria/gaussian-splatting, class OptimizationParams
PUBLISHED = {
    "position": 1.6e-4,
    "scale": 5e-3,
    "rotation": 1e-3,
    "opacity": 5e-2,
    "colour": 2.5e-3,
    "slope": 2.5e-3 / 20,  # what there are the colours that depend on the direction of view
}
KINDS = tuple(PUBLISHED)
WIDTHS = {"position": 2, "scale": 2, "rotation": 1, "opacity": 1, "colour": 3, "slope": 6}
FIRST_HARMONIC, SECOND_HARMONIC = 0.28209, 0.4886  # with which splatting codes multiply colours
LEAST_OPACITY = 0.005  # others are removed
SHRINK = 1.6  # how much smaller the halves of one that is split are
BLOCK = (2, 4)  # pixels of which a step sees one

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Raster:
    """Pixels of an image.

    Attributes:
        quadratic: [pixels, 6]: 1, x, y, x^2, x y, y^2 of each.
        linear: [pixels, 3, 1]: 1, x, y.
    """

    quadratic: Tensor
    linear: Tensor

    def __getitem__(self, pixels: Tensor | slice) -> Raster:
        return Raster(self.quadratic[pixels], self.linear[pixels])


def raster(height: int, width: int) -> Raster:
    """Return the pixels of an image, row by row."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height - 0.5,
        ((torch.arange(width) + 0.5) / width - 0.5) * width / height,
        indexing="ij",
    )
    one, x, y = torch.ones(height * width), x.reshape(-1), y.reshape(-1)
    quadratic = torch.stack([one, x, y, x * x, x * y, y * y], 1)
    return Raster(quadratic, torch.stack([one, x, y], 1)[:, :, None])


@lru_cache
def photograph(height: int, width: int) -> Tensor:
    """Return scikit-learn's photograph of a flower, [height * width, 3], between 0 and 1."""
    import numpy as np
    from sklearn.datasets import load_sample_image

    pixels = torch.from_numpy(np.array(load_sample_image("flower.jpg"))).float() / 255
    wanted = round(pixels.shape[0] * width / height)
    image = pixels[:, : min(wanted, pixels.shape[1])].permute(2, 0, 1)[None]
    small = F.interpolate(image, size=(height, width), mode="area")[0]
    return small.permute(1, 2, 0).reshape(-1, 3)


def begin(count: int, aspect: float, generator: torch.Generator) -> Params:
    """Return grey Gaussians of one size at random places and angles."""
    size = 0.5 * math.sqrt(aspect / count)
    places = torch.rand(count, 2, generator=generator) - 0.5
    return {
        "position": places * torch.tensor([aspect, 1.0]),
        "scale": torch.full((count, 2), math.log(size)),
        "rotation": torch.rand(count, 1, generator=generator) * math.pi,
        "opacity": torch.full((count, 1), math.log(0.1 / 0.9)),
        "colour": torch.zeros(count, 3),
        "slope": torch.zeros(count, 6),
    }


def render(params: Mapping[str, Tensor], pixels: Raster) -> Tensor:
    """Return the colours of pixels, [pixels, 3]."""
    (x, y), angle = params["position"].T, params["rotation"][:, 0]
    cos, sin = angle.cos(), angle.sin()
    size = params["scale"].exp()
    a, b = (size**-2).T
    # the inverse covariance: xx, xy, yy
    xx, yy, xy = cos**2 * a + sin**2 * b, sin**2 * a + cos**2 * b, cos * sin * (a - b)
    constant = -0.5 * (xx * x * x + 2 * xy * x * y + yy * y * y)
    form = torch.stack([constant, xx * x + xy * y, xy * x + yy * y, -0.5 * xx, -xy, -0.5 * yy])
    # of a needle, rounding may leave a power above 0
    power = (pixels.quadratic @ form).clamp(max=0.0)
    alpha = power.exp() * (0.99 * params["opacity"].sigmoid()[:, 0])
    # what is left of the light behind each
    passed = torch.log1p(-alpha)
    weights = alpha * (passed.cumsum(1) - passed).exp()
    # colours change linearly along the axes of a Gaussian, by a harmonic over its size
    slope = params["slope"].view(-1, 2, 3) * SECOND_HARMONIC
    along = torch.stack([cos, sin], 1) / size[:, :1], torch.stack([-sin, cos], 1) / size[:, 1:]
    by_x, by_y = (
        along[0][:, i : i + 1] * slope[:, 0] + along[1][:, i : i + 1] * slope[:, 1] for i in (0, 1)
    )
    middle = 0.5 + FIRST_HARMONIC * params["colour"] - by_x * x[:, None] - by_y * y[:, None]
    planes = (weights @ torch.cat([middle, by_x, by_y], 1)).view(-1, 3, 3)
    return (planes * pixels.linear).sum(1)


def sample(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return the indices of random pixels, one of each block."""
    rows, columns = height // BLOCK[0], width // BLOCK[1]
    y = torch.arange(rows)[:, None] * BLOCK[0]
    x = torch.arange(columns)[None] * BLOCK[1]
    y = y + torch.randint(BLOCK[0], (rows, columns), generator=generator)
    x = x + torch.randint(BLOCK[1], (rows, columns), generator=generator)
    return (y * width + x).reshape(-1)


@torch.no_grad()
def densify(
    params: Mapping[str, Tensor], pulls: Tensor, wanted: int, generator: torch.Generator
) -> tuple[Params, Tensor]:
    """Remove Gaussians that nobody sees, and split those with the largest gradients of their positions in two.

    Args:
        pulls: [gaussians]: the sum of the norms of these gradients since last time.
        wanted: the number of Gaussians to come to, if there are enough to split.

    Returns:
        The new parameters and, for each of their rows, the old row whose state it goes on with, or -1.
    """
    seen = params["opacity"].sigmoid()[:, 0] > LEAST_OPACITY
    count = int(seen.sum())
    split = pulls.masked_fill(~seen, -1.0).topk(max(0, min(wanted - count, count))).indices
    seen[split] = False
    # halves lie where the whole one was, between what is before and behind it
    sources = torch.cat([seen.nonzero().flatten(), split, split]).sort(stable=True).values
    rows = torch.where(seen[sources], sources, -1)
    new = {kind: param.detach()[sources] for kind, param in params.items()}
    halves = (rows < 0).nonzero().flatten()
    size, angle = new["scale"][halves].exp(), new["rotation"][halves, 0]
    u, v = (torch.randn(len(halves), 2, generator=generator) * size).T
    cos, sin = angle.cos(), angle.sin()
    new["position"][halves] += torch.stack([cos * u - sin * v, sin * u + cos * v], 1)
    new["scale"][halves] -= math.log(SHRINK)
    return new, rows


def psnr(params: Mapping[str, Tensor], pixels: Raster, image: Tensor) -> float:
    """Return the peak signal-to-noise ratio of a whole image in dB; 0 for one that is not finite."""
    with torch.no_grad():
        error = (render(params, pixels).clamp(0.0, 1.0) - image).square().mean()
    return -10.0 * math.log10(float(error)) if bool(error.isfinite()) else 0.0


def pack(params: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the parameters for a JSON file, in 16 bits."""
    return {
        kind: base64.b64encode(param.detach().half().numpy().tobytes()).decode()
        for kind, param in params.items()
    }


def unpack(packed: dict[str, str]) -> Params:
    """Return the parameters that were packed."""
    return {
        kind: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float16)
        .float()
        .view(-1, WIDTHS[kind])
        for kind, text in packed.items()
    }
