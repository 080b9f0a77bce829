"""2^31 + 17 elements in one parameter: no index of 32 bits anywhere. Takes 10 GiB.

Nearly all gradients are zero and have no memory of their own: pages that nobody wrote to are one page of zeros. Weights
decay, so that each element has to move.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from soak import report_of_part, scale_of_part
from torch import Tensor, nn

import stackelberg_fused as sf

NUMEL = 2**31 + 17
SLICE = 2**24
WEIGHT = 1.5


def _places(numel: int) -> Tensor:
    """Elements with a gradient: at both ends, and beside the numbers that 32 bits hold."""
    near = [0, 1, 31, 4095, 4096, 2**31 - 1, 2**31, 2**31 + 1, numel // 3, numel - 2, numel - 1]
    return torch.tensor(sorted({n for n in near if n < numel}))


def _zeros(numel: int, dtype: torch.dtype) -> Tensor:
    """Zeros in pages that nobody has written to; torch writes them."""
    kinds = {torch.float32: np.float32, torch.bfloat16: np.uint16}
    return torch.from_numpy(np.zeros(numel, kinds[dtype])).view(dtype)


def _check(weights: Tensor, expected: Tensor, places: Tensor, other: float) -> None:
    assert torch.equal(weights[places], expected), "elements with a gradient"
    others = sum(int((part == other).sum()) for part in weights.split(SLICE))
    assert others == len(weights) - len(places), (
        f"{len(weights) - len(places) - others} elements differ"
    )


def _step(dtype: torch.dtype, numel: int, **settings: Any) -> float:
    """One step of a large parameter, compared with that of a small one by the reference; its seconds."""
    places = _places(numel)
    gradients = torch.linspace(-1, 1.55, len(places)).to(dtype)
    small = nn.Parameter(torch.full((len(places) + 1,), WEIGHT, dtype=dtype))
    small.grad = torch.cat([gradients, torch.zeros(1, dtype=dtype)])
    # a step does not depend on how the state is stored after it
    plain = {k: v for k, v in settings.items() if k != "state_dtype"}
    sf.StackelbergAdamW([{"params": [small], **plain}], backend="reference").step()
    large = nn.Parameter(torch.full((numel,), WEIGHT, dtype=dtype))
    optimizer = sf.StackelbergAdamW([{"params": [large], **settings}], backend="cpu", flatten=False)
    large.grad = _zeros(numel, dtype)
    large.grad[places] = gradients
    start = time.monotonic()
    optimizer.step()
    took = time.monotonic() - start
    _check(large.detach(), small[:-1].detach(), places, float(small[-1].detach()))
    return round(took, 1)


def main() -> None:
    torch.set_num_threads(1)
    numel = round((NUMEL - 17) * scale_of_part()) + 17
    figures: dict[str, Any] = {"numel": numel}
    sgd = {"rule": "sgd", "lr": 0.1, "weight_decay": 0.5}
    figures["sgd_float32_seconds"] = _step(torch.float32, numel, **sgd)
    eight_bits = {"lr": 0.1, "weight_decay": 0.5, "state_dtype": "8bit", "float32_state": "none"}
    figures["adamw_bfloat16_8bit_seconds"] = _step(torch.bfloat16, numel, **eight_bits)
    report_of_part(figures)


if __name__ == "__main__":
    main()
