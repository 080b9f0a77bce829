"""Projections onto constraint sets: the reference implementation in PyTorch.

A result is rounded towards the set, so that the stored value is in the set and a second projection changes no bit.
csrc/projection.h and triton_kernels/project.py implement the sets that couple many elements (ball and simplex).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
# The relative tolerance of a norm or a sum, so that rounding never moves elements that were projected before. It is
# kSlack in csrc/projection.h.
SLACK = 2.0**-40


def project_box(param: Tensor, low: float, high: float) -> Tensor:
    """Return the nearest point of the box [low, high], a new tensor. NaN and -0.0 stay unchanged.

    Args:
        param: any shape, any floating dtype.
        low, high: bounds that the dtype represents exactly.
    """
    return torch.where(param < low, low, torch.where(param > high, high, param))


def ball_factor(sum_of_squares: Tensor, radius: float, largest: float, dtype: torch.dtype) -> float:
    """Return the factor that projects elements onto a ball; 1 if they are inside, or their norm is not finite.

    Args:
        sum_of_squares: of the elements, float64 [].
        radius: of the ball.
        largest: the largest norm that counts as inside.
        dtype: of the elements. For float64 the factor is reduced by `SLACK`; the rounding towards zero of a shorter
            dtype is larger than that.
    """
    norm = math.sqrt(float(sum_of_squares))  # torch's is not rounded to nearest everywhere
    if norm <= largest or not norm < math.inf:
        return 1.0
    return radius / norm * (1 - SLACK if torch.finfo(dtype).eps < SLACK else 1.0)


def project_simplex(param: Tensor, total: float, smallest: float, largest: float) -> Tensor:
    """Return the nearest point of the simplex for each row, a new tensor.

    Rows that are inside or not finite stay unchanged. The support is found by sorting (Held, Wolfe & Crowder 1974;
    Duchi et al. 2008); the kernels shrink it iteratively (Michelot 1986) instead. Elements are taken relative to the
    largest of the row, because rounding would lose `total` beside a large element.

    Args:
        param: any shape, any floating dtype; rows are along the last dimension.
        total: the sum of a row after the projection.
        smallest, largest: the range of sums that count as inside.
    """
    x = param.double()
    if not x.numel():
        return param.clone()
    x = x.reshape(1) if x.dim() == 0 else x
    relative = x - x.amax(-1, keepdim=True)
    descending = relative.sort(-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, dtype=torch.float64, device=x.device)
    thresholds = (descending.cumsum(-1) - total) / count
    support = (descending > thresholds).sum(-1, keepdim=True)
    shifted = (relative - thresholds.gather(-1, (support - 1).clamp(min=0))).clamp(min=0)
    projected = toward_zero(shifted * (total / shifted.sum(-1, keepdim=True)), param.dtype)
    sums, is_finite = x.sum(-1, keepdim=True), x.isfinite().all(-1, keepdim=True)
    is_inside = (x >= 0).all(-1, keepdim=True) & (smallest <= sums) & (sums <= largest)
    return torch.where(is_finite & ~is_inside, projected, x.to(param.dtype)).view_as(param)


def toward_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 towards zero to a dtype; return a new tensor."""
    nearest = x.to(dtype)
    integers = _INTEGERS[nearest.element_size()]
    # floating-point bits are sign and magnitude: one less is the next number towards zero
    toward = (nearest.view(integers) - 1).view(dtype)
    return torch.where(nearest.double().abs() > x.abs(), toward, nearest)


@lru_cache(maxsize=256)
def rounded(value: float, dtype: torch.dtype, up: bool) -> float:
    """Round a number up (or down) to a number of a dtype; return it unchanged if the dtype represents it."""
    exact = torch.tensor(value, dtype=torch.float64)
    nearest = exact.to(dtype)
    if not (nearest.double() < exact if up else nearest.double() > exact):
        return float(nearest)
    bits = nearest.view(_INTEGERS[nearest.element_size()])
    if nearest == 0:
        bits = torch.zeros_like(bits) + 1
        return float(bits.view(dtype)) * (1.0 if up else -1.0)
    away_from_zero = (nearest > 0) == up
    return float((bits + (1 if away_from_zero else -1)).view(dtype))
