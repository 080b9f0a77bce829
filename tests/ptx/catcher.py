"""Backends whose launches are kept, looked at and executed on the host."""

from __future__ import annotations

import ctypes
from itertools import pairwise
from typing import Any

import pytest

from .backends import PtxCudaBackend, PtxTritonBackend, kind_of
from .caught_launch import CaughtLaunch, params_of
from .host_executor import execute

BACKENDS = {"nvcc": PtxCudaBackend, "triton": PtxTritonBackend}


class Catcher:
    """Executes launches on the host, keeps them, and looks at what they changed."""

    def __init__(self) -> None:
        self.launches: list[CaughtLaunch] = []

    def __call__(self, caught: CaughtLaunch) -> None:
        self.launches.append(caught)
        check_regions(caught)
        read = {r: _bytes(r.address, r.nbytes) for r in caught.regions if not r.writable}
        execute(caught)
        for region, before in read.items():
            assert _bytes(region.address, region.nbytes) == before, region

    @property
    def kinds(self) -> list[str]:
        return [kind_of(caught.kernel) for caught in self.launches]


def _bytes(address: int, nbytes: int) -> bytes:
    return ctypes.string_at(address, nbytes)


def check_regions(caught: CaughtLaunch) -> None:
    """Regions do not overlap; the kernel is in the module, and the arguments are as long as it declares."""
    regions = sorted(caught.regions, key=lambda region: region.address)
    for before, after in pairwise(regions):
        assert before.address + before.nbytes <= after.address, (before, after)
    assert caught.ptx.count(f".entry {caught.kernel}(") == 1
    last = params_of(caught.ptx)[caught.kernel][-1]
    assert len(caught.params) == last.offset + last.size


def catching(compiler: str) -> tuple[Any, Catcher]:
    """A backend whose launches a `Catcher` gets."""
    status = BACKENDS[compiler].status()
    if not status.available:
        pytest.skip(status.reason)
    catcher = Catcher()
    return BACKENDS[compiler](catcher), catcher
