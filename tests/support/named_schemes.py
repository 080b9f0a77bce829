"""The ways to store weights and state that the design names, and the bytes that a step of Adam moves with them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from stackelberg_fused.groups.schemes import DTYPE_WORD, EIGHT_BITS, Scheme
from stackelberg_fused.numerics.codec import BLOCK


class Named(NamedTuple):
    """A scheme, the dtype of its gradients, and the bytes per parameter that the design states."""

    scheme: Scheme
    grad: torch.dtype
    stated: float

    @property
    def word(self) -> int:
        """Of `Table.formats`."""
        return self.scheme.format | DTYPE_WORD[self.grad] << 8

    def bytes_moved(self) -> tuple[float, float]:
        """Bytes per parameter that are read and written, scales left out."""
        names = ("exp_avg", "exp_avg_sq", self.scheme.master_name)
        tensors = [self.scheme.dtypes(name) for name in names if name is not None]
        dtypes = [d for of in tensors for name, d in of.items() if not name.endswith("_scale")]
        written = sum(dtype.itemsize for dtype in (self.scheme.param, *dtypes))
        return float(written + self.grad.itemsize), float(written)

    @property
    def has_codes(self) -> bool:
        """Tell whether its two moments have scales."""
        return self.scheme.state is EIGHT_BITS

    @property
    def bytes_of_scales(self) -> float:
        """Per parameter: read, and as many written."""
        return 2 / BLOCK if self.has_codes else 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """Of an optimizer."""
        state = "8bit" if self.has_codes else self.scheme.state
        return {"state_dtype": state, "master": self.scheme.master}


BF16, F32 = torch.bfloat16, torch.float32
NAMED = {
    "stochastic": Named(Scheme(BF16, "stochastic", F32, False), BF16, 22),
    "bf16-state": Named(Scheme(F32, None, BF16, False), F32, 20),
    "split16": Named(Scheme(BF16, "split16", F32, False), BF16, 26),
    "kahan": Named(Scheme(BF16, "kahan", BF16, False), BF16, 18),
    "8bit-nearest": Named(Scheme(BF16, None, EIGHT_BITS, False), BF16, 10.125),
    "8bit": Named(Scheme(BF16, "stochastic", EIGHT_BITS, False), BF16, 10.125),
    "split8-8bit": Named(Scheme(BF16, "split8", EIGHT_BITS, False), BF16, 12.125),
}
