"""No memory and no disk: an error, nothing modified, and the optimizer goes on as if nothing had been tried.

Memory runs out twice over: each allocation of a call fails in turn, one after the other, until the call succeeds; and
the process may have no more than it has (RLIMIT_AS). A checkpoint hits a limit of its size (RLIMIT_FSIZE).
"""

from __future__ import annotations

import copy
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from failing_allocator import (
    SETTINGS,
    assert_same,
    every_allocation,
    make_optimizer,
    make_params,
    step,
    values,
)
from soak import report_of_part, scale_of_part
from torch import nn

import stackelberg_fused as sf


def _limited(kind: int, value: int, call: Callable[[], Any]) -> bool:
    """Tell whether a call fails under a limit of the system."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        call()
    except (RuntimeError, MemoryError, OSError):
        return True
    finally:
        resource.setrlimit(kind, before)
    return False


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def address_space(scale: float) -> int:
    """Have the system refuse the memory of construction, of state and of a copy to load; returns the refusals."""
    numel, spare = round(50e6 * scale) + 10_000_000, 16 * 2**20
    params = [nn.Parameter(torch.full((numel,), 0.5)) for _ in range(2)]
    before, refusals = [float(p.detach().double().sum()) for p in params], 0

    def unchanged(expected: list[float], what: str) -> None:
        nonlocal refusals
        refusals += 1
        assert [float(p.detach().double().sum()) for p in params] == expected, what

    make = lambda: sf.StackelbergAdamW(params, lr=0.1)  # noqa: E731
    assert _limited(resource.RLIMIT_AS, _virtual() + spare, make)
    unchanged(before, "construction")
    optimizer = make()
    for p in params:
        p.grad = torch.full_like(p, 0.25)
    assert _limited(resource.RLIMIT_AS, _virtual() + spare, optimizer.step)
    unchanged(before, "first step")
    optimizer.step()
    after = [float(p.detach().double().sum()) for p in params]
    packed = copy.deepcopy(optimizer.state_dict())
    optimizer.state.clear()  # so that loading has to allocate
    load = lambda: optimizer.load_state_dict(packed)  # noqa: E731
    assert _limited(resource.RLIMIT_AS, _virtual() + spare, load)
    unchanged(after, "load")
    load()
    optimizer.step()
    twin = [nn.Parameter(torch.full((4,), 0.5))]
    small = sf.StackelbergAdamW(twin, lr=0.1)
    for _ in range(2):
        twin[0].grad = torch.full_like(twin[0], 0.25)
        small.step()
    assert all(bool((p == twin[0][0]).all()) for p in params), "results differ afterwards"
    return refusals


def full_disk() -> int:
    """Fail a checkpoint at many sizes; returns the failures. What was cut off is refused, and modifies nothing."""
    params = make_params("adamw")
    optimizer = make_optimizer("adamw", params)
    step(optimizer, 0)
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        # of one name, which is in the file, so that they are of one size
        path, part = Path(folder, "whole", "state.pt"), Path(folder, "part", "state.pt")
        path.parent.mkdir()
        part.parent.mkdir()
        torch.save(optimizer.state_dict(), path)
        whole = path.stat().st_size
        expected = values(params, optimizer)
        for limit in range(0, whole, max(1, whole // 25)):
            assert _limited(
                resource.RLIMIT_FSIZE, limit, lambda: torch.save(optimizer.state_dict(), part)
            )
            try:
                optimizer.load_state_dict(torch.load(part))
            except Exception:
                failures += 1
            assert_same(values(params, optimizer), expected, f"after {limit} bytes")
            part.unlink(missing_ok=True)
        optimizer.load_state_dict(torch.load(path))
        assert_same(values(params, optimizer), expected, "the whole checkpoint")
    return failures


def main() -> None:
    torch.set_num_threads(1)
    scale = scale_of_part()
    ways = [{"backend": b, "flatten": f} for b in ("cpu", "reference") for f in (True, False)]
    failed = sum(every_allocation(name, **way) for name in SETTINGS for way in ways)
    figures = {"allocations_failed": failed, "address_space_refusals": address_space(scale)}
    report_of_part({**figures, "disk_failures": full_disk()})


if __name__ == "__main__":
    main()
