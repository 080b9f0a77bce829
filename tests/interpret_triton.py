"""Every rule in one interpreted Triton launch against the CPU kernel; run with TRITON_INTERPRET=1.

By tolerance: the interpreter rounds `tl.fma` twice.
"""

from __future__ import annotations

import numpy as np
import torch
from kernel_problem import FIELDS, Problem
from stackelberg_fused.triton_kernels.step import launch_step

from stackelberg_fused.rules import RULES


def check(problem: Problem) -> None:
    expected, before = problem.updated_by_cpu(), problem.memory.copy()
    tables = [problem.records, problem.tiles.reshape(-1), problem.rows]
    words = [
        torch.from_numpy(t.view(n))
        for t, n in zip(tables, (np.int64, np.int64, np.float32), strict=True)
    ]
    half = len(problem.tiles) // 2
    launch_step(*words, 0, half, 0, problem.rule)
    launch_step(*words, half, len(problem.tiles) - half, 0, problem.rule)
    updated = problem.memory
    close = np.isclose(updated, expected, rtol=2e-5, atol=2e-6, equal_nan=True)
    problem.memory = before
    problem.check(np.where(close, expected, updated), expected)


check(Problem(RULES, absent=(7, 18)))
check(Problem(RULES[:1], {field: i % 4 for i, field in enumerate(FIELDS)}))
check(Problem(RULES, special=True))
print("checked")
