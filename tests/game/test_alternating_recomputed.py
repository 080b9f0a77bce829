"""Alternating steps of players that compute parts of their graphs anew, by `torch.utils.checkpoint`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import Snapshot
from games import all_of, assert_same_players, data, optimizer_of, players
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import stackelberg_fused as sf


@pytest.mark.parametrize("is_reentrant", [False, True])
def test_a_body(is_reentrant: bool) -> None:
    ours, whole = players(), players()

    def recomputed(inputs: Tensor) -> Tensor:
        first, *rest = ours[0]
        features = first(inputs)
        for part in rest:
            features = checkpoint(part, features, use_reentrant=is_reentrant)
        return features

    optimizers = [optimizer_of(*ours), optimizer_of(*whole)]
    for number in range(3):
        sf.alternating_step(recomputed, ours[1], F.cross_entropy, optimizers[0], *data(number), 2)
        sf.alternating_step(*whole, F.cross_entropy, optimizers[1], *data(number), 2)
    assert_same_players(ours, whole)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("place", ["head", "loss"])
def test_a_head_or_a_loss(place: str, scaled: bool) -> None:
    """The reentrant way gives weights no gradient where features need none: refused before the head moves."""
    ours, whole = players(), players()
    body, head = ours
    optimizer, twin = optimizer_of(*ours), optimizer_of(*whole)
    before, scaler = Snapshot(optimizer), torch.amp.GradScaler("cpu") if scaled else None

    def step(is_reentrant: bool, number: int) -> None:
        def recomputed(*args: Any) -> Any:
            function = head if place == "head" else F.cross_entropy
            return checkpoint(function, *args, use_reentrant=is_reentrant)

        follower = (recomputed, F.cross_entropy) if place == "head" else (head, recomputed)
        sf.alternating_step(body, *follower, optimizer, *data(number), scaler=scaler)

    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        step(True, 0)
    before.assert_unchanged()
    optimizer.zero_grad()
    for number in range(3):
        step(False, number)
        sf.alternating_step(*whole, F.cross_entropy, twin, *data(number))
    for p, q in zip(all_of(ours), all_of(whole), strict=True):
        torch.testing.assert_close(p, q)
