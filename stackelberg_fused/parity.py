"""How far a backend may be from the reference, and how far it is, in units of the last place (ulp)."""

from __future__ import annotations

import torch
from torch import Tensor

# Per step and element, in float32: ulp of max(|m|, |g|), of max(v, g^2) and of max(|p|, |update|), where g is the
# gradient as the rule sees it, L2 decay included. An average has what its parameter has, and 2 of max(|ema|, |p|) of
# its own.
ULP_BOUNDS = {
    "param": 8.0,
    "exp_avg": 2.0,
    "exp_avg_sq": 2.0,
    "max_exp_avg_sq": 2.0,
    "momentum_buffer": 2.0,
    "ema": 10.0,
}


def ulp(x: Tensor) -> Tensor:
    """The distance from |x| to the next float32 above it; float32, elementwise."""
    size = x.abs().float()
    return torch.nextafter(size, torch.full_like(size, torch.inf)).sub_(size)


def ulps_off(actual: Tensor, expected: Tensor, scale: Tensor) -> float:
    """The largest difference in ulp of `scale`; equal values and NaN for NaN differ by 0, other NaN by inf."""
    if actual.numel() == 0:
        return 0.0
    off = (actual.double() - expected.double()).abs() / ulp(scale).double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    return torch.where(same, 0.0, torch.where(off.isnan(), torch.inf, off)).max().item()


def worst_ulps(
    before: Tensor,
    grad: Tensor,
    actual: dict[str, Tensor],
    expected: dict[str, Tensor],
    weight_decay: float = 0.0,
) -> dict[str, float]:
    """Differences of one parameter and its state after one step from the same start.

    Args:
        before: the parameter before the step.
        grad: its gradient; same shape.
        actual, expected: "param" and the state's tensors after the step, same keys and shapes.
        weight_decay: the L2 coefficient that was added to the gradient.

    Returns:
        By quantity, the largest difference in ulp, to be held against `ULP_BOUNDS`.
    """
    effective = grad.abs() + weight_decay * before.abs()
    update = (expected["param"] - before).abs()
    scales = {
        "param": torch.maximum(expected["param"].abs(), update),
        "exp_avg_sq": torch.maximum(expected.get("exp_avg_sq", grad), effective.square()),
    }
    scales["max_exp_avg_sq"] = scales["exp_avg_sq"]
    scales["ema"] = torch.maximum(expected.get("ema", grad).abs(), scales["param"])
    return {
        name: ulps_off(
            value, expected[name], scales.get(name, torch.maximum(expected[name].abs(), effective))
        )
        for name, value in actual.items()
    }
