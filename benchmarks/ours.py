"""Our AdamW as a contestant, on each backend.

`stackelberg_fused` is imported when one of these runs: a process that times torch alone must not import it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .contestant import Availability, Contestant, Groups, OptimizerAndStep, with_step
from .workloads import ADAM_BYTES, HYPERPARAMETERS

# the preference of backend="auto"
BACKENDS = ("cuda", "triton", "cpu", "reference")
# the reference is written to be read, and is slow
REFERENCE_NUMEL = 1_000_000


def make_ours(groups: Groups, **options: Any) -> OptimizerAndStep:
    """Build our AdamW with further options."""
    import stackelberg_fused as sf

    return with_step(sf.StackelbergAdamW(groups, **HYPERPARAMETERS, **options))


def ours_available(backend: str, device: str) -> Availability:
    """Tell whether a backend can run on a device here."""
    import stackelberg_fused as sf

    if backend in ("triton", "cuda") and device != "cuda":
        return False, "runs on a GPU"
    if backend == "cpu" and device != "cpu":
        return False, "runs on the host"
    for status in sf.backends():
        if status.name == backend:
            return status.available, status.reason
    return False, "not a backend of this version"


def ours_by_backend(
    make: Callable[..., OptimizerAndStep] = make_ours, bytes_per_parameter: float = ADAM_BYTES
) -> list[Contestant]:
    """Return one contestant per backend; `make(groups, backend=...)` builds its optimizer."""
    return [
        Contestant(
            f"ours {backend}",
            "ours",
            functools.partial(make, backend=backend),
            functools.partial(ours_available, backend),
            exact=True,
            max_numel=REFERENCE_NUMEL if backend == "reference" else None,
            bytes_per_parameter=bytes_per_parameter,
        )
        for backend in BACKENDS
    ]
