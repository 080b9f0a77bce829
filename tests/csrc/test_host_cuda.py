"""The shim itself (barriers, shuffles, votes, indices, bfloat16, refusals), and the arithmetic of in_range_math.cuh."""

from __future__ import annotations

import ctypes
import re
from functools import cache

import numpy as np
import pytest
import torch
from host_cuda.backend import ORDERS
from host_cuda.build import SELFTEST, build, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


@cache
def _library() -> ctypes.PyDLL:
    loaded = ctypes.PyDLL(str(build(SELFTEST)))
    loaded.last_error.restype = ctypes.c_char_p
    loaded.set_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
    loaded.to_bfloat16.restype = ctypes.c_uint16
    loaded.to_bfloat16.argtypes = [ctypes.c_float]
    loaded.from_bfloat16.restype = ctypes.c_float
    loaded.from_bfloat16.argtypes = [ctypes.c_uint16]
    loaded.byte_perm.restype = ctypes.c_uint32
    loaded.byte_perm.argtypes = [ctypes.c_uint32] * 3
    loaded.count_differences.restype = ctypes.c_int64
    loaded.count_differences.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    loaded.count_ratio_differences.restype = ctypes.c_int64
    loaded.count_ratio_differences.argtypes = [ctypes.c_void_p] * 3
    loaded.count_ratio_differences.argtypes += [ctypes.c_int64, ctypes.c_int]
    return loaded


@pytest.fixture(params=ORDERS)
def shim(request: pytest.FixtureRequest) -> ctypes.PyDLL:
    """The shim's own kernels, running in each order."""
    _library().set_order(ORDERS.index(request.param), 7)
    return _library()


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize("threads", [32, 96, 256, 1024])
def test_block_reduction(shim: ctypes.PyDLL, threads: int) -> None:
    blocks = 9
    values = np.arange(blocks * threads - 5, dtype=np.float32) % 13
    sums = np.full(blocks, np.nan, np.float32)
    shim.run_sum_blocks(_pointer(values), _pointer(sums), len(values), blocks, threads)
    assert shim.last_error() is None
    padded = np.concatenate([values, np.zeros(5, np.float32)]).reshape(blocks, threads)
    assert sums.tolist() == padded.sum(axis=1).tolist()


def test_shuffles(shim: ctypes.PyDLL) -> None:
    out = np.full((7, 32), -1, np.int32)
    shim.run_shuffle_lanes(_pointer(out))
    assert shim.last_error() is None
    lane = np.arange(32)
    assert out[0].tolist() == np.where(lane + 3 < 32, lane + 3, lane).tolist()
    assert out[1].tolist() == np.where(lane % 8 + 3 < 8, lane + 3, lane).tolist()
    assert out[2].tolist() == (lane ^ 5).tolist()
    assert out[3].tolist() == [7] * 32
    assert out[4].tolist() == (lane // 8 * 8 + 2).tolist()
    assert out[5].tolist() == ((lane ^ 1) * 2 + 1).tolist()
    assert out[6].tolist() == np.where(lane < 16, lane ^ 1, lane ^ 2).tolist()


def test_reductions(shim: ctypes.PyDLL) -> None:
    out = np.zeros((4, 32), np.uint32)
    shim.run_reduce_lanes(_pointer(out))
    assert shim.last_error() is None
    values = [0xFFFFFFF0, *range(6, 37)]  # unsigned, and sums wrap around
    assert out[0].tolist() == [sum(values) % 2**32] * 32
    assert out[1].tolist() == [6] * 32
    assert out[2].tolist() == [values[0]] * 32
    assert out[3].tolist() == [values[0]] * 16 + [21] * 16


def test_votes(shim: ctypes.PyDLL) -> None:
    out = np.full((6, 32), -1, np.int32)
    shim.run_ask_lanes(_pointer(out))
    assert shim.last_error() is None
    lower = np.arange(32) < 16
    expected = [[1] * 32, [1] * 32, [0] * 32, lower, ~lower, [0] * 32]
    assert out.tolist() == np.array(expected, np.int32).tolist()


@pytest.mark.parametrize(
    "selector, expected", [(0x3210, 0x44332211), (0x7632, 0x88774433), (0x0073, 0x11118844)]
)
def test_bytes_are_picked(selector: int, expected: int) -> None:
    assert _library().byte_perm(0x44332211, 0x88776655, selector) == expected


@pytest.mark.parametrize("threads", [1, 33, 256])
def test_barriers(shim: ctypes.PyDLL, threads: int) -> None:
    out = np.full(threads, -1, np.int32)
    shim.run_rotate(_pointer(out), threads)
    assert shim.last_error() is None
    assert out.tolist() == [(i + 1) % threads + 2 for i in range(threads)]


def test_indices(shim: ctypes.PyDLL) -> None:
    out = np.zeros(6 * 40, np.uint32)
    shim.run_index_threads(_pointer(out))
    assert out.tolist() == [block * 1000 + thread for block in range(6) for thread in range(40)]


@pytest.mark.parametrize(
    "which, message",
    [
        (0, r"40 of 64 threads wait at selftest\.cu:\d+ for others that returned"),
        (1, r"threads of one block wait at selftest\.cu:\d+ and at selftest\.cu:\d+"),
        (2, r"16 of 32 threads wait at selftest\.cu:\d+"),
        (3, r"reads a lane that is not in the mask"),
        (4, r"misaligned address"),
        (5, r"invalid configuration argument"),
    ],
)
def test_misuse_is_reported_and_the_next_launch_runs(
    shim: ctypes.PyDLL, which: int, message: str
) -> None:
    memory = np.zeros(8, np.float32)
    unaligned = memory.ctypes.data + (4 if memory.ctypes.data % 16 == 0 else 0)
    shim.run_misuse(which, ctypes.c_void_p(unaligned))
    assert re.search(message, shim.last_error().decode())
    test_barriers(shim, 64)


def test_bfloat16_rounds_as_torch() -> None:
    specials = [
        0.0,
        -0.0,
        1.0,
        float("inf"),
        float("-inf"),
        3.4e38,
        1e-40,
        1e-45,
        1.00390625,
        1.01171875,
    ]
    values = torch.cat([torch.tensor(specials), torch.randn(1000)])
    for value, expected in zip(values.tolist(), values.bfloat16(), strict=True):
        bits = _library().to_bfloat16(value)
        assert bits == expected.view(torch.uint16).item()
        assert _library().from_bfloat16(bits) == expected.float().item()
    assert _library().to_bfloat16(float("nan")) == 0x7FFF


def test_the_shorter_way_to_a_code_and_back_gives_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    bits[:100_000] &= 0xFFF00000  # codes to the bit, and the numbers beside them
    bits[50_000:100_000] += rng.integers(-2, 3, 50_000).astype(np.uint32)
    bits[:8] = 0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7E800000, 0xFE800000
    random = rng.integers(0, 2**16, len(bits), dtype=np.uint32)
    random[::3], random[1::3] = 0, 0xFFFF
    assert _library().count_differences(_pointer(bits), _pointer(random), len(bits)) == 0


@pytest.mark.parametrize("ulp", [-1, 0, 1])
def test_unchecked_quotients_by_roots_are_correctly_rounded(ulp: int) -> None:
    """Over the whole range of `InRange`, with its ends and zeros of both signs."""
    rng = np.random.default_rng(0)

    def numbers(least: float, most: float, *special: float) -> np.ndarray:
        """Float32 numbers with exponents of equal frequency."""
        ends = np.array([least, most], np.float32).view(np.uint32)
        bits = rng.integers(ends[0], ends[1], 1 << 22, dtype=np.uint32, endpoint=True)
        found = bits.view(np.float32)
        for k, x in enumerate((least, most, *special)):
            found[rng.integers(0, len(found), 20_000 * (k + 1))] = x
        return found

    m = numbers(2.0**-100, 2.0**15, 0.0, 1.0) * rng.choice(np.float32([-1, 1]), 1 << 22)
    v = numbers(2.0**-149, 2.0**31, 0.0, 0.25, 2.0**-126, 2.0**-101)
    eps = numbers(2.0**-60, 2.0**16, 1e-8, 3e-10)
    eps[::16] = 0
    v[::16][v[::16] == 0] = 1  # no quotients by zero
    count = _library().count_ratio_differences(_pointer(m), _pointer(v), _pointer(eps), len(m), ulp)
    assert count == 0
