"""Types of the options that take one of a few strings: what editors and type checkers know of them.

They are for annotations; what is accepted at run time, and said of anything else, stands where each option is read.

Attributes:
    Role: of a param group, a player, a step.
    RuleName: what a group is updated by.
    BackendName: what runs, see `backends()`.
    Grads, Mode, Release, UpdateEveryGrads, Master, StateDtype, Float32State: of the option of this name, see
        `StackelbergAdam`.
    Tied: of `split_body_head` and `find_ratio`.
    LossLike: of `best_response` and what is built on it.
    MaybeNone: stands beside the type of a value that is None in cases that its reader knows from the arguments, so
        that nobody has to rule None out where it cannot be; a checker still refuses what fits neither. typeshed's name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

Role: TypeAlias = Literal["body", "head"]
RuleName: TypeAlias = Literal["adam", "adamw", "sgd"]
BackendName: TypeAlias = Literal["auto", "cuda", "triton", "cpu", "reference"]
Grads: TypeAlias = Literal["gather", "flat"]
Mode: TypeAlias = Literal["simultaneous", "alternating"]
Release: TypeAlias = Literal["backward"] | None
UpdateEveryGrads: TypeAlias = Literal["latest", "mean"]
Master: TypeAlias = Literal["stochastic", "kahan", "split16", "split8", "fp32"] | None
StateDtype: TypeAlias = torch.dtype | Literal["float32", "bfloat16", "8bit"] | None
Float32State: TypeAlias = Literal["vectors", "none"] | Callable[[str, Tensor], bool]
Tied: TypeAlias = Literal["error", "head", "body"]
LossLike: TypeAlias = Literal["mse", "cross_entropy"] | nn.Module | Callable[..., Tensor]
MaybeNone: TypeAlias = Any
