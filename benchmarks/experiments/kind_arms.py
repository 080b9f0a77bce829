"""The kinds of parameters of a GPT, and the ways to give them rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...optimizers.adam import StackelbergAdam

KINDS = ("embeddings", "matrices", "norms and biases", "head")


@dataclass(frozen=True)
class Arm:
    """One way to give the kinds their rates.

    Attributes:
        label: names it in tables, plots and results.
        ratios: the rate of each kind relative to that of the matrices; None: each kind has its own.
    """

    label: str
    ratios: tuple[float, float, float, float] | None


ONE_RATE = Arm("one rate", (1.0, 1.0, 1.0, 1.0))
BY_KIND = Arm("rates by kind", None)
# embedding 0.3, matrices 0.025 (by Muon there), scalars 0.015, head 1/320
PUBLISHED = Arm("published ratios", (12.0, 1.0, 0.6, 0.125))
FAST_EMBEDDINGS = Arm("embeddings x 10", (10.0, 1.0, 1.0, 1.0))
FASTER_EMBEDDINGS = Arm("embeddings x 100", (100.0, 1.0, 1.0, 1.0))
FAST_HEAD = Arm("head x 10", (1.0, 1.0, 1.0, 10.0))
IN_RATIOS = (PUBLISHED, FAST_EMBEDDINGS, FASTER_EMBEDDINGS, FAST_HEAD)
ARMS = (ONE_RATE, BY_KIND, *IN_RATIOS)


def kind_of(name: str, param: Tensor) -> str:
    """Return the kind of a parameter of the demo's GPT."""
    if name.startswith("lm_head."):
        return "head"
    if "embedding" in name:
        return "embeddings"
    return "matrices" if param.ndim == 2 else "norms and biases"


def by_kind(model: nn.Module) -> list[dict[str, Any]]:
    """Return a param group for each kind."""
    return _split(model.named_parameters())


def together(model: nn.Module) -> list[dict[str, Any]]:
    """Return one param group, of names and parameters, whose rate is that of the matrices."""
    return [{"params": list(model.named_parameters()), "name": "matrices"}]


def in_ratios(
    groups: Iterable[dict[str, Any]], ratios: tuple[float, ...], **settings: Any
) -> torch.optim.Optimizer:
    """Return Adam with a group for each kind, whose rate is that of the one group times the kind's ratio."""
    (whole,) = groups
    kinds = _split(whole["params"])
    rates = [whole["lr"] * ratio for ratio in ratios]
    return StackelbergAdam(
        [{**kind, "lr": rate} for kind, rate in zip(kinds, rates, strict=True)], **settings
    )


def _split(named: Iterable[tuple[str, Tensor]]) -> list[dict[str, Any]]:
    groups: dict[str, list[tuple[str, Tensor]]] = {kind: [] for kind in KINDS}
    for name, param in named:
        groups[kind_of(name, param)].append((name, param))
    return [{"params": params, "name": kind} for kind, params in groups.items()]
