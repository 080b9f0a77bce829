"""One step at a few sizes under pytest-benchmark: ``pytest benchmarks --benchmark-only``."""

from __future__ import annotations

import pytest
import torch

from .contestant import Contestant
from .peers import float32_contestants
from .preparation import SEED, PreparedContestant, gradient_sets
from .workloads import TORCH_FUSED, Workload

SIZES = {
    "1 x 4k": ((4096,),),
    "2 x 75k": ((75_000,),) * 2,
    "600 x 1000": ((1000,),) * 600,
    "1 x 16M": ((4096, 4096),),
}
CONTESTANTS = [c for c in float32_contestants() if c.family == "ours" or c.name == TORCH_FUSED]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda c: c.name)
def test_step(benchmark, contestant: Contestant, size: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = SIZES[size]
    group_of = tuple(int(2 * i >= len(shapes)) for i in range(len(shapes)))
    workload = Workload(size, shapes, group_of, 1)
    available, reason = contestant.available(device)
    if not available:
        pytest.skip(reason)
    if contestant.max_numel and workload.numel > contestant.max_numel:
        pytest.skip(f"only up to {contestant.max_numel:,} parameters")
    start = workload.tensors(device, SEED, 1.0)
    prepared = PreparedContestant.build(contestant, workload, start)
    prepared.set_gradients(gradient_sets(workload, device, SEED)[0])

    def step() -> None:
        prepared.step()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = size
    benchmark.extra_info |= {"parameters": workload.numel, "device": device}
    benchmark(step)
