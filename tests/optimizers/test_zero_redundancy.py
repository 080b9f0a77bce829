"""A process that has nothing of the head from ZeroRedundancyOptimizer steps as torch's, and says what all say."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from ranks import Ranks, of_ranks
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

import stackelberg_fused as sf

pytestmark = of_ranks


def _groups(**head: Any) -> list[dict[str, Any]]:
    """A head so small that it comes to one process as a whole."""
    torch.manual_seed(0)
    body, last = nn.Linear(4, 4), nn.Linear(4, 1)
    return [
        {"params": list(body.parameters())},
        {"params": list(last.parameters()), "role": "head", **head},
    ]


def _step(kind: Any, dealt: list[dict[str, Any]], **options: Any) -> tuple[Any, list[str]]:
    """Two steps; the weights after them, and what was said."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        optimizer = ZeroRedundancyOptimizer(dealt, optimizer_class=kind, **options)
        params = [p for group in dealt for p in group["params"]]
        for _ in range(2):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    said = [
        str(w.message)
        for w in seen
        if "has no effect" in str(w.message) or "names the" in str(w.message)
    ]
    return [p.detach() for p in params], said


def _is_as_torchs(backend: str) -> None:
    expected, _ = _step(torch.optim.AdamW, _groups(lr=0.1), lr=0.01)
    weights, said = _step(sf.StackelbergAdamW, _groups(lr=0.1), lr=0.01, backend=backend)
    torch.testing.assert_close(weights, expected)
    assert said == [], said


def test_it_steps_as_torchs(ranks: Ranks) -> None:
    for world, backend in ((2, "reference"), (3, "cpu")):
        ranks(world, _is_as_torchs, backend)


def _says_what_is_lost() -> None:
    """The head has its rate from the wrapper, wherever it lies."""
    _, said = _step(sf.StackelbergAdamW, _groups(), lr=0.01, head_lr_ratio=10.0)
    assert len(said) == 1, said
    assert said[0].startswith("head_lr_ratio=10 has no effect: every head group came"), said


def test_a_ratio_without_effect_is_told_by_all(ranks: Ranks) -> None:
    ranks(2, _says_what_is_lost)


def _clips_a_head_elsewhere() -> None:
    _, said = _step(sf.StackelbergAdamW, _groups(lr=0.1), lr=0.01, max_grad_norm={"head": 1.0})
    assert said == [], said


def test_no_process_lacks_a_head(ranks: Ranks) -> None:
    ranks(2, _clips_a_head_elsewhere)


def _has_nothing() -> None:
    one = [{"params": [nn.Parameter(torch.ones(3))], "role": "head", "lr": 0.1}]
    weights, said = _step(sf.StackelbergAdamW, one, lr=0.01)
    assert said == [], said
    assert bool((weights[0] < 1).all()), weights


def test_a_process_may_have_nothing_at_all(ranks: Ranks) -> None:
    ranks(2, _has_nothing)
