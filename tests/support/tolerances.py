"""Every tolerance of the tests, each with its reason. Whatever is not in this table is compared bit by bit."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerance(NamedTuple):
    """Bounds on how far a float32 kernel may be from the reference after one step from the same state.

    Attributes:
        ulps: units in the last place of `scale`.
        scale: the magnitude that rounding errors are relative to.
    """

    ulps: int
    scale: str
    reason: str


STEP = {
    "exp_avg": Tolerance(
        2,
        "max(|m|, |g|)",
        "fma(1 - beta1, g - m, m) rounds twice, torch's lerp three times, and g - m may cancel; with weight decay g is "
        "itself a sum, rounded once by fma and twice by torch",
    ),
    "exp_avg_sq": Tolerance(
        2, "max(v, g^2)", "fma saves one of the four roundings of v * beta2 + (1 - beta2) * g * g"
    ),
    "max_exp_avg_sq": Tolerance(2, "max(v, g^2)", "a maximum rounds nothing: as exp_avg_sq"),
    "momentum_buffer": Tolerance(
        2,
        "max(|m|, |g|)",
        "fma saves one of the three roundings of momentum * m + (1 - dampening) * g",
    ),
    "param": Tolerance(
        8,
        "max(|p|, |update|)",
        "the bias corrections are folded into step_size and eps, which moves four roundings of the update (root, sum, "
        "quotient, product) and its moments' two ulp each",
    ),
    "ema": Tolerance(
        10,
        "max(|ema|, |p|, |update|)",
        "what its parameter is off by, times a weight of at most 1; and the roundings of the difference and of the sum",
    ),
}

# Interpreted Triton before 3.9 only: it rounds `tl.fma` twice, so a moment carries an error relative to the terms that
# cancelled in it, and the parameter that times the rate. On a GPU Triton is compared bit by bit.
INTERPRETED_PARAM = Tolerance(
    8,
    "max(|p|, |update|, rate * max(|m|, |g|))",
    "as param; and 2 ulp of max(|m|, |g|) in the first moment reach the parameter through the rate per unit of moment",
)

# A kernel beside torch over several steps: each is within STEP, and the differences add up, in the worst place where a
# moment is close to zero. Not for finding bugs of rounding (STEP is), but of wrong elements, steps or settings.
SEVERAL_STEPS = {"rtol": 1e-5, "atol": 1e-5}

# A trainer of another library with our optimizer beside the same with torch's, rates of 1e-2 at most, some ten steps.
IN_TRAINERS = {"rtol": 0.0, "atol": 3e-6}

# What is stored in fewer bits, beside the reference over a few steps: float32 differs as above; where that makes a
# number round to its other neighbour, by the same random number, it is a step of the format off, and steps after it.
LOW_PRECISION_NEAR = 2e-5  # relative, of what is stored in float32 or nearly so
LOW_PRECISION_FLIPPED = 0.02  # share of the elements that may be farther
LOW_PRECISION_STEP = 0.3  # relative: two steps of 8 bits, which are an eighth each at most

# Scalars of a row, and rates held in tensors: rounded to float32, an ulp of which is this at most.
FLOAT32_SCALAR = 2.0**-23
# Rates and bias corrections: float64, the same products in another order.
HOST_SCALAR = 1e-11

# Root-mean-square error against a float64 oracle, relative to torch's fused kernel on the same inputs.
RMS_VERSUS_TORCH_FUSED = 1.01  # no rounding more than torch makes; 1 % is the sample's own noise


def ulp(scale: Tensor) -> Tensor:
    """The distance from |scale| to the next float32, elementwise; that of the smallest normal number below it."""
    magnitude = scale.abs().float().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.nextafter(magnitude, torch.full_like(magnitude, torch.inf)) - magnitude
