"""Projections onto constraint sets, in PyTorch: what is correct.

A result is rounded towards the set, so that the stored value is in it, and projecting it again leaves it as it is, to
the bit. csrc/projection.h and triton_kernels/project.py say the same of the sets that many elements share.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
# By how much, relatively, a norm or a sum may be above what is asked for, so that rounding moves nothing that was
# projected before. kSlack of csrc/projection.h.
SLACK = 2.0**-40


def project_box(param: Tensor, low: float, high: float) -> Tensor:
    """The nearest point of a box whose bounds are numbers of the dtype: new; NaN stays NaN, and so does -0.0."""
    return torch.where(param < low, low, torch.where(param > high, high, param))


def ball_factor(sum_of_squares: Tensor, radius: float, largest: float, dtype: torch.dtype) -> float:
    """What elements are multiplied by to be in a ball: 1 where they are, or are not finite.

    Args:
        sum_of_squares: float64 [].
        radius: of the ball.
        largest: norm that counts as inside.
        dtype: of the elements. Numbers of less bits than `SLACK` has are rounded towards zero by enough.
    """
    norm = float(sum_of_squares.sqrt())
    if norm <= largest or not norm < math.inf:
        return 1.0
    return radius / norm * (1 - SLACK if torch.finfo(dtype).eps < SLACK else 1.0)


def project_simplex(param: Tensor, total: float, smallest: float, largest: float) -> Tensor:
    """The nearest point of the simplex, row by row: new; rows that are in it, or not finite, stay as they are.

    By sorting (Held, Wolfe & Crowder 1974; Duchi et al. 2008), where the kernels narrow down the support
    (Michelot 1986). Relative to the row's largest element, from which the total would otherwise be lost.

    Args:
        param: any shape, any floating dtype; rows are along the last dimension.
        total: of a row.
        smallest, largest: sums that count as inside.
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
    kept = (relative - thresholds.gather(-1, (support - 1).clamp(min=0))).clamp(min=0)
    found = toward_zero(kept * (total / kept.sum(-1, keepdim=True)), param.dtype)
    sums, is_finite = x.sum(-1, keepdim=True), x.isfinite().all(-1, keepdim=True)
    is_inside = (x >= 0).all(-1, keepdim=True) & (smallest <= sums) & (sums <= largest)
    return torch.where(is_finite & ~is_inside, found, x.to(param.dtype)).view_as(param)


def toward_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 rounded to a dtype towards zero: new."""
    near = x.to(dtype)
    integers = _INTEGERS[near.element_size()]
    nearer = (near.view(integers) - 1).view(
        dtype
    )  # sign and magnitude: one less is one nearer to zero
    return torch.where(near.double().abs() > x.abs(), nearer, near)


@lru_cache(maxsize=256)
def rounded(value: float, dtype: torch.dtype, up: bool) -> float:
    """The nearest number of a dtype on one side of a number, or that number."""
    exact = torch.tensor(value, dtype=torch.float64)
    near = exact.to(dtype)
    if not (near.double() < exact if up else near.double() > exact):
        return float(near)
    bits = near.view(_INTEGERS[near.element_size()])
    if near == 0:
        bits = torch.zeros_like(bits) + 1
        return float(bits.view(dtype)) * (1.0 if up else -1.0)
    away_from_zero = (near > 0) == up
    return float((bits + (1 if away_from_zero else -1)).view(dtype))
