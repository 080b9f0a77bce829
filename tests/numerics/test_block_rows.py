"""Rows, which no block of codes crosses; tests/memory/test_region.py has those of shards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stackelberg_fused.numerics.block_rows import block_row_of, rows_of, scale_shape


@pytest.mark.parametrize(
    "like, rows, scales, block_row",
    [
        (torch.zeros(()), (1, 1), (1,), 0),
        (torch.zeros(40), (1, 40), (2,), 0),
        (torch.zeros(3, 64), (3, 64), (3, 2), 0),
        (torch.zeros(3, 65), (3, 65), (3, 3), 65),
        (torch.zeros(1, 65), (1, 65), (1, 3), 0),
        (torch.zeros(65, 3).t(), (65, 3), (65, 1), 3),  # rows of memory
        (torch.zeros(2, 3, 5, 7), (2, 105), (2, 4), 105),
        (torch.zeros(2, 3, 5, 7).to(memory_format=torch.channels_last), (2, 105), (2, 4), 105),
        (torch.zeros(0, 8), (0, 8), (0, 1), 0),
        (torch.zeros(8, 0), (8, 0), (8, 0), 0),
    ],
)
def test_rows_of_blocks(
    like: Tensor, rows: tuple[int, int], scales: tuple[int, ...], block_row: int
) -> None:
    assert (rows_of(like), scale_shape(like), block_row_of(like)) == (rows, scales, block_row)
