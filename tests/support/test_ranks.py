"""Ranks give back what they return, fail with their own tracebacks, and are ended where they are stuck."""

from __future__ import annotations

import os
import time

import pytest
import torch
from ranks import Ranks, of_ranks

dist = torch.distributed
pytestmark = of_ranks


def _sum(shift: int) -> tuple[int, int, int]:
    total = torch.tensor([dist.get_rank() + shift])
    dist.all_reduce(total)
    return dist.get_world_size(), dist.get_rank(), int(total)


def _one_fails() -> None:
    assert dist.get_rank() != 1, "only the second one"
    dist.all_reduce(torch.ones(1))  # waits for it


def _one_sleeps() -> None:
    if dist.get_rank() == 1:
        time.sleep(100)


def _one_dies() -> None:
    if dist.get_rank() == 0:
        os._exit(3)


def test_each_world_has_its_ranks(ranks: Ranks) -> None:
    assert ranks(2, _sum, 5) == [(2, 0, 11), (2, 1, 11)]
    assert ranks(4, _sum, 0) == [(4, rank, 6) for rank in range(4)]
    assert ranks(1, _sum, 0) == [(1, 0, 0)]


def test_a_failure_is_that_of_its_rank(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match=r"rank 1 failed:\n(.*\n)*.*only the second one"):
        ranks(2, _one_fails)
    assert ranks(2, _sum, 0) == [(2, 0, 1), (2, 1, 1)]


def test_a_stuck_rank_is_named_with_its_stack(ranks: Ranks) -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank 1 is stuck:\n(.*\n)*.*in _one_sleeps"):
        ranks(2, _one_sleeps, limit=1.0)
    assert time.monotonic() - began < 30
    assert ranks(2, _sum, 0) == [(2, 0, 1), (2, 1, 1)]


def test_a_death_is_told(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match="rank 0 failed:\nthe process died"):
        ranks(2, _one_dies)
