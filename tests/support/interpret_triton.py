"""Every rule in one interpreted Triton launch against the CPU kernel; run with TRITON_INTERPRET=1.

To the bit; by tolerance before Triton 3.9, whose interpreter rounds `tl.fma` twice.
"""

from __future__ import annotations

import numpy as np
import torch
from backends import rounds_fma_twice
from kernel_problem import FIELDS, TURNS, Problem
from quick_interpreter import refuse_integer_masks
from stackelberg_fused.triton_kernels.launch_options import LaunchOptions
from stackelberg_fused.triton_kernels.step import launch_step

from stackelberg_fused.groups.rules import RULES

SCALE = torch.full((1,), 4.0)
refuse_integer_masks()


def check(problem: Problem, **options: torch.Tensor) -> None:
    """Two launches over a half of the tiles each; `options`: those whose addresses the problem has."""
    expected, before = problem.updated_by_cpu(), problem.memory.copy()
    tables = [problem.records, problem.tiles.view(np.int64), problem.rows]
    words = [
        torch.from_numpy(t.view(n))
        for t, n in zip(tables, (np.int64, np.int64, np.float32), strict=True)
    ]
    half = len(problem.tiles) // 2
    more = {name: bool(problem.more.get(name)) for name in ("takes_turns", "zero_grads")}
    for first, count in ((0, half), (half, len(problem.tiles) - half)):
        launch_step(*words, first, count, 0, problem.present, LaunchOptions(**more, **options))
    updated = problem.memory
    problem.memory = before
    if rounds_fma_twice():
        close = np.isclose(updated, expected, rtol=2e-5, atol=2e-6, equal_nan=True)
        updated = np.where(close, expected, updated)
    problem.check(updated, expected)


check(Problem(RULES, absent=(7, 18)))
check(Problem(RULES[:1], {field: i % 4 for i, field in enumerate(FIELDS)}))
check(Problem(RULES, special=True))
TURNING = {"turns": tuple(TURNS), "absent": tuple(range(1, 10 * len(RULES), 3))}
check(Problem(RULES, zero_grads=1, absent=(7, 18)))
check(Problem(RULES, **TURNING))
check(Problem(RULES, turns=("mean",), zero_grads=1, grad_scale=SCALE.data_ptr()), grad_scale=SCALE)
check(Problem(RULES, zero_grads=1, found_inf=SCALE.data_ptr(), **TURNING), found_inf=SCALE)
for field in ("grad", "ema", "grad_sum"):
    check(Problem((0, 32), {field: 1}, turns=("mean", "sums"), zero_grads=1))
print("checked")
