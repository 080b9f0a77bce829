"""Bandwidth probes: a copy, and a bare loop ("stream") that moves the bytes of an Adam step.

The loop reads p, g, m, v and writes p, m, v.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .workloads import ADAM_BYTES

COPY_BYTES = 16
COPY, STREAM = "copy", "stream 28 B/param"


def _native_stream(
    arrays: tuple[torch.Tensor, ...], numel: int
) -> tuple[Callable[[], object], str] | None:
    try:
        from stackelberg_fused import _cpu
    except ImportError:
        return None
    if not hasattr(_cpu, "stream_adam_bytes"):
        return None
    addresses = [a.data_ptr() for a in arrays]
    threads = torch.get_num_threads()
    return lambda: _cpu.stream_adam_bytes(*addresses, numel, threads), "bare C++ loop"


def _triton_stream(
    arrays: tuple[torch.Tensor, ...], numel: int
) -> tuple[Callable[[], object], str] | None:
    try:
        from .stream_kernel import stream
    except ImportError:
        return None
    return lambda: stream(*arrays, numel), "bare Triton kernel"


def _torch_stream(arrays: tuple[torch.Tensor, ...]) -> tuple[Callable[[], object], str]:
    p, g, m, v = arrays

    def three_operators() -> None:
        p.add_(g, alpha=1e-9)  # 12 bytes
        m.mul_(1.0)  # 8
        v.mul_(1.0)  # 8

    return three_operators, "three torch operators"


def probes(numel: int, device: str) -> tuple[dict[str, Callable[[], object]], str]:
    """Build the probes over the memory that a float32 Adam step on `numel` parameters uses.

    Returns the calls by name, and a description of the stream's loop. The copy reads 8 bytes per parameter
    and writes 8: it copies one half of the memory onto the other.
    """
    # multiples of 64 elements align the four arrays as an optimizer's would be
    stride = -(-numel // 64) * 64
    block = torch.ones(4 * stride, device=device)
    arrays = tuple(block[i * stride : i * stride + numel] for i in range(4))
    native = _triton_stream if device == "cuda" else _native_stream
    stream, description = native(arrays, numel) or _torch_stream(arrays)
    source, destination = block[: 2 * stride], block[2 * stride :]
    return {COPY: lambda: destination.copy_(source), STREAM: stream}, description


def bytes_moved(probe: str, numel: int) -> int:
    """Return the bytes that one call of the named probe moves."""
    return (COPY_BYTES if probe == COPY else ADAM_BYTES) * numel
