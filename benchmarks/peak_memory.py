"""The most memory that parameters, gradients and state hold in a backward pass, as the allocator counts it.

The count is read twice for every gradient, when it was computed and when the optimizer has seen it, and once more after
the step, from the second step on. The batch is one row, so that activations count for
little, and what was allocated before the model was made is subtracted. On a CPU it is glibc's count of all that is
allocated in the process, on a GPU torch's.
"""

from __future__ import annotations

import ctypes
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .backward import make_each_alone, make_releasing
from .contestant import Groups, OptimizerAndStep
from .models import ManyLayers
from .ours import make_ours
from .peers import make_torch

NAME = "peak memory of backward + step"
LAYERS, WIDTH = 64, 1024
STEPS = 3
BF16: dict[str, Any] = {"master": "split8", "state_dtype": "8bit", "float32_state": "none"}


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            [
                "arena",
                "ordblks",
                "smblks",
                "hblks",
                "hblkhd",
                "usmblks",
                "fsmblks",
                "uordblks",
                "fordblks",
                "keepcost",
            ]
        )
    ]


def _allocated_on_host() -> Callable[[], int]:
    """Return what counts bytes in use.

    Raises:
        AttributeError: the C library does not count.
    """
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallInfo

    def allocated() -> int:
        found = mallinfo()
        return found.uordblks + found.hblkhd

    return allocated


def _step_then_clear(make: Callable[..., OptimizerAndStep], groups: Groups) -> OptimizerAndStep:
    optimizer, step = make(groups)

    def both() -> None:
        step()
        optimizer.zero_grad(set_to_none=True)

    return optimizer, both


def contestants() -> dict[str, tuple[torch.dtype, Callable[[Groups], Any], float | None]]:
    """Return by name: dtype of the parameters, what makes optimizer and step, and the bound in bytes per parameter."""
    ours, torchs = make_ours, functools.partial(make_torch, fused=True)
    return {
        "torch fused": (torch.float32, functools.partial(_step_then_clear, torchs), None),
        "torch fused, each alone": (torch.float32, make_each_alone, None),
        "ours": (torch.float32, functools.partial(_step_then_clear, ours), None),
        "ours, release": (torch.float32, make_releasing, 12.1),
        "ours, split8 + 8 bits": (
            torch.bfloat16,
            functools.partial(_step_then_clear, functools.partial(ours, **BF16)),
            None,
        ),
        "ours, split8 + 8 bits, release": (
            torch.bfloat16,
            functools.partial(make_releasing, **BF16),
            5.2,
        ),
    }


def peak_of(
    make: Callable[[Groups], Any], dtype: torch.dtype, device: str, width: int
) -> dict[str, Any]:
    """Train a few steps; return the peak and what of it is the largest gradient, in bytes, and the parameters."""
    count = torch.cuda.memory_allocated if device == "cuda" else _allocated_on_host()
    gc.collect()
    before, most, is_counting = count(), 0, False

    def look(_: torch.Tensor) -> None:
        nonlocal most
        if is_counting:
            most = max(most, count() - before)

    model: nn.Module = ManyLayers(LAYERS, width).to(device, dtype)
    params = list(model.parameters())
    optimizer, step = make([{"params": params, "lr": 1e-5}])
    for p in params:
        p.register_hook(look)
        p.register_post_accumulate_grad_hook(look)
    x = torch.randn(1, width, device=device, dtype=dtype)
    for number in range(STEPS):
        is_counting = number > 0  # the first step allocates the state
        model(x).float().square().sum().backward()
        step()
        look(x)
    del optimizer, step
    return {
        "peak": most,
        "largest_gradient": max(p.numel() * p.element_size() for p in params),
        "parameters": sum(p.numel() for p in params),
    }


def run(device: str, width: int = WIDTH) -> dict[str, Any]:
    """Measure the row. A bound is about the peak without the largest gradient and one batch of an update."""
    from stackelberg_fused.optimizers.release import BATCH_BYTES

    # what is allocated once, by torch and by the library, is none of the peak
    peak_of(functools.partial(_step_then_clear, make_ours), torch.float32, device, 16)
    entries = []
    for name, (dtype, make, bound) in contestants().items():
        found = peak_of(make, dtype, device, width)
        numel = found["parameters"]
        net = (found["peak"] - found["largest_gradient"] - BATCH_BYTES) / numel
        entry = {
            "name": name,
            "status": "measured",
            **found,
            "peak_per_parameter": round(found["peak"] / numel, 3),
        }
        if bound is not None:
            entry |= {"bound": bound, "without_batch": round(net, 3), "met": net <= bound}
        entries.append(entry)
    return {"name": NAME, "device": device, "parameters": numel, "entries": entries}


def lines(row: dict[str, Any]) -> Iterator[str]:
    """Format the row as text."""
    yield row["name"]
    yield f"  {row['parameters']:,} parameters; bytes per parameter of parameters, gradients and state, as allocated"
    for entry in row["entries"]:
        text = f"  {entry['name']:<34}{entry['peak_per_parameter']:>7.2f}"
        if "bound" in entry:
            verdict = "met" if entry["met"] else "MISSED"
            text += (
                f"   without the largest gradient and one batch {entry['without_batch']:.2f}, "
                f"target <= {entry['bound']:g}: {verdict}"
            )
        yield text
