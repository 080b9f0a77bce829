"""Strategies of param groups: settings of each rule, what goes with them, and edits between steps."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from stackelberg_fused import Box, L2Ball

RATES = st.sampled_from([0.0, 0.01, 0.3])
ADAM = {
    "rule": st.sampled_from(["adam", "adamw"]),
    "lr": RATES,
    "betas": st.sampled_from([(0.9, 0.99), (0.0, 0.5)]),
    "eps": st.sampled_from([1e-8, 1e-3]),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "amsgrad": st.booleans(),
    "maximize": st.booleans(),
}
SGD = {
    "rule": st.just("sgd"),
    "lr": RATES,
    "momentum": st.sampled_from([0.0, 0.9]),
    "dampening": st.sampled_from([0.0, 0.4]),
    "weight_decay": st.sampled_from([0.0, 0.1]),
    "maximize": st.booleans(),
}
NESTEROV = {**SGD, "momentum": st.just(0.9), "dampening": st.just(0.0), "nesterov": st.just(True)}
TORCHS = st.one_of(*map(st.fixed_dictionaries, (ADAM, SGD, NESTEROV)))

# what torch has not
OURS_ALONE = {
    "cautious": st.booleans(),
    "ema_decay": st.sampled_from([None, 0.0, 0.9]),
    "constraint": st.sampled_from([None, Box(-0.5, 0.7), L2Ball(3.0)]),
    "update_every": st.sampled_from([1, 1, 2, 3]),
    "update_every_grads": st.sampled_from(["latest", "mean"]),
    "state_dtype": st.sampled_from([None, "float32", "bfloat16", "8bit"]),
    "float32_state": st.sampled_from(["vectors", "none"]),
    "master": st.sampled_from([None, "stochastic", "kahan", "fp32", "split16", "split8"]),
}
OURS = st.fixed_dictionaries({}, optional=OURS_ALONE)

EDITS = st.sampled_from(
    [
        {"lr": 0.2},
        {"lr": 0.0},
        {"weight_decay": 0.0},
        {"weight_decay": 0.2},
        {"maximize": True},
        {"betas": (0.5, 0.9)},
        {"momentum": 0.5},
        {"amsgrad": True},
        {"cautious": True},
        {"cautious": False},
        {"ema_decay": 0.5},
        {"ema_decay": None},
        {"update_every": 2},
        {"update_every": 1},
        {"constraint": Box(-0.25, 0.5)},
        {"constraint": None},
        {"state_dtype": "bfloat16"},
        {"state_dtype": None},
        {"master": None},
        {"master": "kahan"},
    ]
)


def fits(settings: dict[str, Any], dtypes: set[torch.dtype], is_native: bool) -> bool:
    """Tell whether an optimizer takes these settings for parameters of these dtypes; others are refused by name."""
    halves = dtypes & {torch.bfloat16, torch.float16}
    master = settings.get("master")
    if settings.get("cautious") and settings["rule"] != "adamw":
        return False
    if master in ("split16", "split8") and torch.float16 in dtypes:
        return False
    if torch.float64 in dtypes and settings.get("state_dtype") not in (None,):
        return False
    if isinstance(settings.get("constraint"), L2Ball):
        # of parameters that all lie in one table; with fewer bits there is a kernel for it in none but the reference
        is_direct = not halves and settings.get("state_dtype") in (None, "float32")
        return len(dtypes) == 1 and (
            is_direct or (not is_native and master in (None, "stochastic"))
        )
    return True
