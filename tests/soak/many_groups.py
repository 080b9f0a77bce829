"""10 000 groups of two tensors each: construction, steps and checkpoints beside torch's fused AdamW."""

from __future__ import annotations

from typing import Any

import torch
from many_tensors import compare
from soak import report_of_part, scale_of_part
from torch import nn

GROUPS = 10_000


def _groups(count: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    made = lambda: nn.Parameter(torch.randn(8, generator=generator))  # noqa: E731
    return [{"params": [made(), made()], "lr": 1e-2 * (1 + i % 7)} for i in range(count)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    report_of_part(compare(_groups, GROUPS, scale_of_part()))
