"""How far a backend may be from the reference, and how far it is: in units of the last place (ulp) of float32, and in
steps of formats of fewer bits."""

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
from ..numerics.codec import BLOCK

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

# Of what is stored in fewer bits: an ulp may round an element to the other side, by the same random number, or double
# the scale of its block. That is rare.
STEP_BOUNDS = {"steps": 2.0, "% otherwise": 1.0}


# bits of fraction that a weight is stored with, where its parameter does not say
_FRACTION: dict[str | None, int] = {"kahan": 15, "split16": 23, "split8": 15, "fp32": 23}


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


def steps_off(
    scheme: Scheme,
    before: Tensor,
    grad: Tensor,
    actual: dict[str, Tensor],
    expected: dict[str, Tensor],
) -> dict[str, float]:
    """Differences of one parameter and its state, stored in fewer bits, after one step from the same start.

    Args:
        scheme: of the parameter.
        before: the parameter before the step.
        grad: its gradient; same shape.
        actual, expected: "param" and the state's tensors after the step, same keys and shapes.

    Returns:
        The largest difference in steps of what is stored, and the share of elements in percent that are rounded to
        another number; to be held against `STEP_BOUNDS`.
    """
    found, wanted = (_opened(scheme, stored) for stored in (actual, expected))
    update = (wanted["param"] - in_memory_order(before).float()).abs()
    effective = in_memory_order(grad).float().abs()
    largest, others, count = 0.0, 0, 0
    for name, value in wanted.items():
        rule = update if name == "param" else effective
        size = torch.maximum(value.abs(), rule.square() if name in SECOND_MOMENTS else rule)
        off = (found[name].double() - value.double()).abs()
        is_same = (off <= 8 * ulp(size).double()) | (found[name] == value)
        steps = torch.where(is_same, 0.0, off / _steps(scheme, name, size, expected).double())
        largest = max([largest, *steps.nan_to_num(torch.inf).tolist()])
        others, count = others + int((~is_same).sum()), count + len(off)
    return {"steps": largest, "% otherwise": 100 * others / max(count, 1)}


def _opened(scheme: Scheme, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight and moments as float32 [n], in the order of memory."""
    flat = {n: t if n.endswith("_scale") else in_memory_order(t) for n, t in stored.items()}
    moments = [name for name in MOMENTS if has_moment(flat, name)]
    found = {name: read_moment(scheme, name, flat) for name in moments}
    return {"param": read_weight(scheme, flat["param"], flat), **found}


def _steps(scheme: Scheme, name: str, size: Tensor, stored: dict[str, Tensor]) -> Tensor:
    """Of what is stored, for numbers of so many sizes, float32 [n]."""
    fraction = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10, EIGHT_BITS: 3}
    if name == "param":
        steps = ulp(size) * 2.0 ** (23 - _FRACTION.get(scheme.master, fraction[scheme.param]))
        return steps.clamp(min=2.0**-24) if scheme.param is torch.float16 else steps
    steps = ulp(size) * 2.0 ** (23 - fraction[scheme.state])
    if scheme.state is EIGHT_BITS:
        scales = stored[scale_name(name)].int() - 127
        even = torch.ldexp(
            torch.ones_like(scales, dtype=torch.float32), scales - code_of(name).one - 2
        )
        steps = torch.maximum(steps, even.repeat_interleave(BLOCK)[: len(steps)])
    return steps
