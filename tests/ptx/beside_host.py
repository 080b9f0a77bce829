"""An executor that checks another launch by launch, against the CUDA sources as g++ compiled them."""

from __future__ import annotations

import ctypes

import numpy as np

from .caught_launch import CaughtLaunch, Executor, Region
from .host_executor import execute

# sums of a launch in progress: zero between launches in any case, and meanwhile each kernel's own
_IN_PROGRESS = ("set_sums", "sums")


class BesideHost:
    """Runs every launch twice from the same memory, and says which buffer the two leave with other bits.

    Args:
        executor: the one to check; the host's results stay.

    Raises:
        AssertionError: on a difference, with the kernel, the buffer and the place.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.launches: list[CaughtLaunch] = []

    def __call__(self, caught: CaughtLaunch) -> None:
        self.launches.append(caught)
        written = [r for r in caught.regions if r.writable and r.name not in _IN_PROGRESS]
        before = [_bytes(region) for region in written]
        aside = [r for r in caught.regions if r.writable and r.name in _IN_PROGRESS]
        sums = [_bytes(region) for region in aside]
        self._executor(caught)
        found = [_bytes(region) for region in written]
        for region, content in zip([*written, *aside], [*before, *sums], strict=True):
            ctypes.memmove(region.address, content, region.nbytes)
        execute(caught)
        for region, content in zip(written, found, strict=True):
            different = _different(content, _bytes(region))
            assert not len(different), _message(caught, region, content, different)


def _bytes(region: Region) -> bytes:
    return ctypes.string_at(region.address, region.nbytes)


def _different(content: bytes, expected: bytes) -> np.ndarray:
    """Indices of 4-byte words that differ (of bytes, in a buffer of other size); any NaN equals any other."""
    if len(content) % 4:
        return np.flatnonzero(np.frombuffer(content, np.uint8) != np.frombuffer(expected, np.uint8))
    a, b = (np.frombuffer(each, np.uint32) for each in (content, expected))
    both_nan = np.isnan(a.view(np.float32)) & np.isnan(b.view(np.float32))
    if len(a) % 2 == 0:
        wide = np.isnan(a.view(np.float64)) & np.isnan(b.view(np.float64))
        both_nan |= np.repeat(wide, 2)
    return np.flatnonzero((a != b) & ~both_nan)


def _message(caught: CaughtLaunch, region: Region, content: bytes, different: np.ndarray) -> str:
    size = 1 if len(content) % 4 else 4
    at = size * int(different[0])
    got, expected = content[at : at + size].hex(), _bytes(region)[at : at + size].hex()
    return (
        f"{caught.compiler}'s {caught.kernel}: {len(different)} words of {region.name} differ, first at byte {at}: "
        f"{got}, expected {expected}"
    )
