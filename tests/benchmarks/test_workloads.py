"""Workloads: seeds, param groups and rates."""

from __future__ import annotations

import pytest
import torch
from bench_rows import TINY


def test_groups_have_rates_of_their_own_and_the_head_ten_times_the_bodys():
    params = [torch.nn.Parameter(t) for t in TINY.tensors("cpu", 0, 1.0)]
    body, head = TINY.param_groups(params)
    assert [len(body["params"]), len(head["params"])] == [2, 1]
    assert (body["role"], head["role"]) == ("body", "head")
    assert head["lr"] == pytest.approx(10.1 * body["lr"])


def test_the_same_seed_gives_the_same_tensors():
    for a, b in zip(TINY.tensors("cpu", 3, 0.5), TINY.tensors("cpu", 3, 0.5), strict=True):
        assert torch.equal(a, b)
