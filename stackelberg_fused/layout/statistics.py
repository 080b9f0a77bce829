"""Gradient statistics: the norm of each player's gradients, and the factors that clip them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..groups.option_types import MaybeNone
from ..groups.param_groups import ROLES, at_least_zero
from ..memory import device_runtime
from ..native.tables import GRADIENT_STATISTICS
from ..numerics import exact_sum
from .scaling import move

_FIELDS = GRADIENT_STATISTICS.fields
assert _FIELDS is not None
_FACTOR = _FIELDS["factor"][1] // 4  # in words of float32


@dataclass(frozen=True)
class ClipLimits:
    """Largest norms of gradients; infinity is no limit.

    Attributes:
        body, head: of each player's gradients; where `joint`, `body` is that of both together.
    """

    body: float
    head: float
    joint: bool

    @classmethod
    def none(cls) -> ClipLimits:
        """Measure everything, clip nothing."""
        return cls(math.inf, math.inf, True)

    @classmethod
    def of(cls, value: Any) -> ClipLimits | None:
        """`max_grad_norm` as users give it: None, a number over everything, or a dict with one per player.

        Raises:
            ValueError, TypeError: it is none of these, negative or NaN.
        """
        if value is None:
            return None
        if not isinstance(value, Mapping):
            limit = _limit("max_grad_norm", value)
            return cls(limit, limit, True)
        unknown = [key for key in value if key not in ROLES]
        if unknown or not value:
            raise ValueError(
                f"max_grad_norm: unknown role {unknown[0]!r}, expected 'body' or 'head'"
                if unknown
                else "max_grad_norm: an empty dict limits nothing, give 'body', 'head' or both"
            )
        limits = {role: _limit(f"max_grad_norm[{role!r}]", value[role]) for role in value}
        return cls(limits.get("body", math.inf), limits.get("head", math.inf), False)


def _limit(name: str, value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError(f"optimizer: {name} must be a number, got {value!r}")
    is_one = isinstance(value, (float, np.generic)) or (
        isinstance(value, Tensor) and value.numel() == 1
    )
    unlimited = is_one and bool(value == math.inf)
    return math.inf if unlimited else at_least_zero("optimizer", name, value)


class Statistics:
    """The results of the statistics launch of one table, on the table's device.

    Attributes:
        buffer: uint8 [64]: `struct GradientStatistics` of csrc/tables.h.
        digits: int64 [2, WORDS]: the exact sums of the squares of body's and head's gradients, from which all of the
            buffer follows (numerics/exact_sum.py). Digits of several tables, or ranks, may be added up.
        sums: int64 [COPIES, 2, KERNEL_WORDS]: what has been added to them in the launch at hand; zero between launches.
    """

    def __init__(self, device: torch.device) -> None:
        self.buffer = torch.zeros(GRADIENT_STATISTICS.itemsize, dtype=torch.uint8, device=device)
        self.digits = torch.zeros((2, exact_sum.WORDS), dtype=torch.int64, device=device)
        shape = exact_sum.COPIES, 2, exact_sum.KERNEL_WORDS
        self.sums = torch.zeros(shape, dtype=torch.int64, device=device)
        self._limits = torch.zeros(2, dtype=torch.float64, device=device)
        self._written: ClipLimits | None = None

    def buffers(self) -> tuple[Tensor, ...]:
        """All that lies on the device."""
        return self.buffer, self.digits, self.sums, self._limits

    def limits_on_device(self, limits: ClipLimits) -> Tensor:
        """float64 [2]: body and head; one tensor for ever, written when they change, since a CUDA graph may read it."""
        if self._written != limits:
            self._limits[0].fill_(limits.body)
            self._limits[1].fill_(limits.head)
            capturing = self._limits.is_cuda and device_runtime.is_capturing()
            self._written = None if capturing else limits  # a capture writes nothing yet
        return self._limits

    @property
    def sum_sq(self) -> Tensor:
        """float64 [2]: of body and head."""
        return self.buffer.view(torch.float64)[:2]

    @property
    def norms(self) -> Tensor:
        """float64 [3]: of body, head and both."""
        return self.buffer.view(torch.float64)[2:5]

    @property
    def factors(self) -> Tensor:
        """float32 [2]: factors that clip the gradients of body and head."""
        return self.buffer.view(torch.float32)[_FACTOR : _FACTOR + 2]

    @property
    def not_finite(self) -> Tensor:
        """float32 []: 1 where one of the numbers was infinite or NaN, else 0; a new tensor."""
        return (self.digits[:, exact_sum.INFINITIES :] != 0).any().float()

    def nothing(self, limits: ClipLimits) -> None:
        """Conclude a step without gradients: norms of zero."""
        self.conclude_digits(torch.zeros_like(self.digits), limits)

    def unknown(self, limits: ClipLimits) -> None:
        """Conclude a step that was skipped before anything was measured: norms of NaN."""
        nan = torch.zeros_like(self.digits)
        nan[:, exact_sum.NANS] = 1
        self.conclude_digits(nan, limits)

    def conclude_digits(self, digits: Tensor, limits: ClipLimits) -> None:
        """Take these sums, and write everything that follows from them: `conclude` of csrc/clipping.h.

        Args:
            digits: int64 [2, WORDS], e.g. `digits` of several tables or ranks added up; on any device.
        """
        self.digits.copy_(exact_sum.carried(move(digits, self.digits.device)))
        sum_sq = exact_sum.rounded(self.digits)
        self.sum_sq.copy_(sum_sq)
        norms = exact_sum.root(torch.cat([sum_sq, (sum_sq[0] + sum_sq[1]).view(1)]))
        self.norms.copy_(norms)
        clipped = norms[2:] if limits.joint else norms[:2]
        self.factors.copy_(clip_factors(clipped, self.limits_on_device(limits)))


def clip_factors(norms: Tensor, most: Tensor) -> Tensor:
    """The factors that clip gradients to the norms `most`, float64; a joint norm is clipped to the first of them.

    As `torch.nn.utils.clip_grad_norm_`: 1 where nothing is to be clipped, NaN where the norm is.

    Args:
        norms: float64 [2] of body and head, or [1] of both together.
        most: float64 [2].
    """
    factors = most / (norms + 1e-6)
    return torch.where((most < math.inf) & ~(factors >= 1), factors, 1.0)


def combine(parts: Sequence[Statistics], limits: ClipLimits) -> None:
    """Give several tables the factors that follow from all of them together."""
    total = parts[0].digits.clone()
    for part in parts[1:]:
        total += move(part.digits, total.device)
    for part in parts:
        part.conclude_digits(total, limits)


NOBODY: frozenset[str] = frozenset()
# what an engine did in a step, a plain tuple since each step makes one: kernels launched, statistics of the gradients
# (None: not measured), roles that had no part in it
Launched = tuple[int, Statistics | None, frozenset[str]]


@dataclass(frozen=True)
class LastStep:
    """Report of a step. Its tensors are copies and stay on the device until somebody reads them.

    Attributes:
        launches: kernels launched.
        grad_norm: float64 [] by "body", "head" and "total": the norms, before clipping and without the scale of the
            loss, of the gradients that moved parameters; None without `max_grad_norm`, NaN where a scaler had the step
            skipped before anything was measured. A player that rested is missing: one that `step(role=...)` leaves
            out, or whose groups all wait for their turn (`update_every`; where the device counts, its norm is 0).
        clip_factor: float32 [] by "body" and "head": the factors that clipped the gradients, of the same players;
            None without `max_grad_norm`.
        skipped: bool []: a gradient scaler had the step skipped; None without one, and where the scaler, without
            `fused=True`, skips a step by not calling it: then there is no report of it.
    """

    launches: int
    grad_norm: dict[str, Tensor] | MaybeNone = None
    clip_factor: dict[str, Tensor] | MaybeNone = None
    skipped: Tensor | None = None

    def as_dict(self) -> dict[str, float | int | bool | None]:
        """Read the report, for a logger: always the same keys, and None for what was not measured.

        Here, and only here, the host waits for the device: once for each device that holds some of it.

        Returns:
            "launches", "grad_norm/body", "grad_norm/head", "grad_norm/total", "clip_factor/body", "clip_factor/head"
            and "skipped".
        """
        tensors: dict[str, Tensor | None] = {
            **{f"grad_norm/{of}": (self.grad_norm or {}).get(of) for of in (*ROLES, "total")},
            **{f"clip_factor/{of}": (self.clip_factor or {}).get(of) for of in ROLES},
            "skipped": self.skipped,
        }
        read = _read({key: tensor for key, tensor in tensors.items() if tensor is not None})
        values: dict[str, float | int | bool | None] = {"launches": self.launches}
        values.update({key: read.get(key) for key in tensors})
        if self.skipped is not None:
            values["skipped"] = bool(read["skipped"])
        return values

    @classmethod
    def of(cls, launched: Launched, found_inf: Tensor | None = None) -> LastStep:
        launches, statistics, resting = launched
        skipped = None if found_inf is None else found_inf.view(()) != 0
        if statistics is None:
            return cls(launches, skipped=skipped)
        norms, factors = statistics.norms.clone(), statistics.factors.clone()
        named = (*zip((*ROLES, "total"), norms.unbind(), strict=True),)
        return cls(
            launches,
            {of: norm for of, norm in named if of not in resting},
            {r: f for r, f in zip(ROLES, factors.unbind(), strict=True) if r not in resting},
            skipped,
        )


def _read(tensors: dict[str, Tensor]) -> dict[str, float]:
    """The numbers in tensors of one element, by one copy from each device."""
    by_device: dict[torch.device, list[str]] = {}
    for key, tensor in tensors.items():
        by_device.setdefault(tensor.device, []).append(key)
    found: dict[str, float] = {}
    for keys in by_device.values():
        numbers = torch.stack([tensors[key].detach().double().view(()) for key in keys])
        found.update(zip(keys, numbers.tolist(), strict=True))
    return found
