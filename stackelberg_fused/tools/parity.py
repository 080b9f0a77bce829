"""Differences between a backend and the reference, and the bounds on them.

The units are units in the last place (ulp) of float32, and steps of the stored format for low-precision storage.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.reference_storage import code_of, read_moment, read_weight
from ..groups.schemes import (
    EIGHT_BITS,
    MOMENTS,
    SECOND_MOMENTS,
    Scheme,
    has_moment,
    scale_name,
)
from ..memory.arena import in_memory_order
from ..numerics.block_rows import block_row_of
from ..numerics.codec import of_elements

# Bounds per step and element, in float32 ulp of max(|m|, |g|) for exp_avg, max(v, g^2) for exp_avg_sq, and
# max(|p|, |update|) for param. g is the gradient with L2 decay. `ema` has the bound of its parameter plus 2 ulp of
# max(|ema|, |p|).
ULP_BOUNDS = {
    "param": 8.0,
    "exp_avg": 2.0,
    "exp_avg_sq": 2.0,
    "max_exp_avg_sq": 2.0,
    "momentum_buffer": 2.0,
    "ema": 10.0,
}

# Bounds for low-precision storage. A difference of one ulp can round an element to the other neighbour in spite of the
# same random number, or double the scale of its block. Both are rare.
STEP_BOUNDS = {"steps": 2.0, "% different": 1.0}

# fraction bits of a stored weight, by `Scheme.master`; any other weight has those of the parameter's dtype
_FRACTION: dict[str | None, int] = {"kahan": 15, "split16": 23, "split8": 15, "fp32": 23}


def ulp(x: Tensor) -> Tensor:
    """Return the distance from |x| to the next larger float32: float32, elementwise."""
    magnitude = x.abs().float()
    return torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf)).sub_(magnitude)


def ulps_off(actual: Tensor, expected: Tensor, scale: Tensor) -> float:
    """Return the largest difference in ulp of `scale`. Two NaN differ by 0, NaN and a number by infinity."""
    if actual.numel() == 0:
        return 0.0
    difference = (actual.double() - expected.double()).abs() / ulp(scale).double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    difference = torch.where(difference.isnan(), torch.inf, difference)
    return torch.where(same, 0.0, difference).max().item()


def worst_ulps(
    before: Tensor,
    grad: Tensor,
    actual: dict[str, Tensor],
    expected: dict[str, Tensor],
    weight_decay: float = 0.0,
) -> dict[str, float]:
    """Compare one parameter and its state after one step from the same start.

    Args:
        before: the parameter before the step.
        grad: its gradient; same shape.
        actual, expected: "param" and the state tensors after the step, same keys and shapes.
        weight_decay: the coefficient of the L2 term in the gradient.

    Returns:
        By quantity, the largest difference in ulp; `ULP_BOUNDS` has the bounds.
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


def steps_off(
    scheme: Scheme,
    before: Tensor,
    grad: Tensor,
    actual: dict[str, Tensor],
    expected: dict[str, Tensor],
) -> dict[str, float]:
    """Compare one parameter and its state in low-precision storage after one step from the same start.

    Args:
        scheme: of the parameter.
        before: the parameter before the step.
        grad: its gradient; same shape.
        actual, expected: "param" and the state tensors after the step, same keys and shapes.

    Returns:
        The largest difference in steps of the stored format, and the percentage of elements that are rounded to another
        number; `STEP_BOUNDS` has the bounds.
    """
    actual_values, expected_values = (_decoded(scheme, stored) for stored in (actual, expected))
    update = (expected_values["param"] - in_memory_order(before).float()).abs()
    gradient = in_memory_order(grad).float().abs()
    largest, different, count = 0.0, 0, 0
    for name, value in expected_values.items():
        change = update if name == "param" else gradient
        size = torch.maximum(value.abs(), change.square() if name in SECOND_MOMENTS else change)
        difference = (actual_values[name].double() - value.double()).abs()
        is_same = (difference <= 8 * ulp(size).double()) | (actual_values[name] == value)
        step_sizes = _step_sizes(scheme, name, size, expected).double()
        steps = torch.where(is_same, 0.0, difference / step_sizes)
        largest = max([largest, *steps.nan_to_num(torch.inf).tolist()])
        different, count = different + int((~is_same).sum()), count + len(difference)
    return {"steps": largest, "% different": 100 * different / max(count, 1)}


def _decoded(scheme: Scheme, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weight and moments as float32 [n], in memory order."""
    flat = {
        n: t.reshape(-1) if n.endswith("_scale") else in_memory_order(t) for n, t in stored.items()
    }
    names = [name for name in MOMENTS if has_moment(flat, name)]
    row = block_row_of(stored["param"])
    moments = {name: read_moment(scheme, name, flat, row) for name in names}
    return {"param": read_weight(scheme, flat["param"], flat), **moments}


def _step_sizes(scheme: Scheme, name: str, size: Tensor, stored: dict[str, Tensor]) -> Tensor:
    """Return the spacing of the stored format at numbers of the magnitudes `size`: float32 [n].

    Args:
        scheme: of the parameter.
        name: "param" or the name of a moment.
        size: float32 [n].
        stored: the state tensors; scales of 8-bit moments are read.
    """
    fraction = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10, EIGHT_BITS: 3}
    if name == "param":
        steps = ulp(size) * 2.0 ** (23 - _FRACTION.get(scheme.master, fraction[scheme.param]))
        return steps.clamp(min=2.0**-24) if scheme.param is torch.float16 else steps
    steps = ulp(size) * 2.0 ** (23 - fraction[scheme.state])
    if scheme.state is EIGHT_BITS:
        scales = stored[scale_name(name)].reshape(-1).int() - 127
        row = block_row_of(stored["param"]) or max(len(steps), 1)
        subnormal_steps = torch.ldexp(
            torch.ones_like(scales, dtype=torch.float32), scales - code_of(name).one - 2
        )
        steps = torch.maximum(steps, of_elements(subnormal_steps, row))
    return steps
