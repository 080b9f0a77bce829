"""An executor that checks another launch by launch, against the CUDA sources as g++ compiled them."""

from __future__ import annotations

import ctypes

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
            expected = _bytes(region)
            assert content == expected, _difference(caught, region, content, expected)


def _bytes(region: Region) -> bytes:
    return ctypes.string_at(region.address, region.nbytes)


def _difference(caught: CaughtLaunch, region: Region, content: bytes, expected: bytes) -> str:
    words = [
        (at, content[at : at + 4].hex(), expected[at : at + 4].hex())
        for at in range(0, region.nbytes, 4)
        if content[at : at + 4] != expected[at : at + 4]
    ]
    at, got, wanted = words[0]
    return (
        f"{caught.compiler}'s {caught.kernel}: {len(words)} words of {region.name} differ, first at byte {at}: "
        f"{got}, expected {wanted}"
    )
