"""Sums of squares in PyTorch in the order of csrc/summation.h, with the same bits for float32 gradients.

Within a tile and over tiles, each of `LANES` lanes adds up every `LANES`-th entry. Then the upper half of the lanes is
added to the lower half until one lane is left. Within a tile an entry is 4 consecutive elements.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..native.tables import TILE_ELEMENTS

LANES = 256


def tile_sums(elements: Tensor) -> Tensor:
    """Return the sum of squares of each tile of a gradient.

    Args:
        elements: [n], in memory order; any real dtype.

    Returns:
        float64 [tiles].
    """
    padded = pad(elements.double(), (0, -elements.numel() % TILE_ELEMENTS))
    entries = padded.square().view(-1, TILE_ELEMENTS // (4 * LANES), LANES, 4)
    parts = entries[:, 0]
    for k in range(1, entries.shape[1]):
        parts = parts + entries[:, k]
    lanes = (parts[..., 0] + parts[..., 2]) + (parts[..., 1] + parts[..., 3])
    return _fold(lanes)


def sum_of(sums: Tensor) -> Tensor:
    """Add up the tile sums of a player: float64 [n] to float64 []."""
    lanes = torch.zeros(LANES, dtype=torch.float64, device=sums.device)
    for entries in pad(sums, (0, -sums.numel() % LANES)).view(-1, LANES):
        lanes = lanes + entries
    return _fold(lanes)


def _fold(lanes: Tensor) -> Tensor:
    """Add up the last dimension, of LANES entries, by halving."""
    half = LANES // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    return lanes[..., 0]
