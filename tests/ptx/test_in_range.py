"""Roots and quotients from approximate seeds are IEEE's, whatever the ISA allows the seeds to be, but for three.

A machine on which one of the three is wrong has wrong roots or quotients in plain CUDA too: ptxas's own begin with the
same seeds and take the same steps.
"""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import sass
from numpy.typing import NDArray
from patience import patience

from ptx.approximate import RECIPROCAL_ROOT_ERROR, Unit, WorstUnit, reciprocal, reciprocal_root
from ptx.in_range import compiled, ratios
from ptx.nvcc_build import CSRC, DEVICE_FLAGS, X86, unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

Float32 = NDArray[np.float32]

# significands in [1, 4) whose root comes out one unit low if its seed is as large as the ISA allows
LOW_ROOTS = (0x3FFC114A, 0x406E9372)
# a power of two divided by this is off if its seed is the smaller of the two that the ISA allows
ALL_ONES = 0x3FFFFFFF
CHUNK = 1 << 20
FOR_HARDWARE = (*DEVICE_FLAGS, f"-I{CSRC}", *(["-DSF_X86=1"] if X86 else []))


def floats(bits: NDArray[np.integer]) -> Float32:
    return bits.astype(np.uint32).view(np.float32)


def always(side: int, most: int = 3) -> Unit:
    return WorstUnit(lambda n: np.full(n, side), most)


def at_random(seed: int) -> Unit:
    random = np.random.default_rng(seed)
    return WorstUnit(lambda n: random.integers(-1, 2, n))


UNITS = {"nearest": Unit(), "largest": always(1), "smallest": always(-1), "random": at_random(0)}
# with these and the ones above all seeds are tried: none may be farther than the second float32 from the nearest one
NEXT = {"next above": always(1, 1), "next below": always(-1, 1)}
by_unit = pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
by_seed = pytest.mark.parametrize("unit", (UNITS | NEXT).values(), ids=UNITS | NEXT)
# all significands of two binades, or some of them
by_stride = pytest.mark.parametrize("stride", [61, pytest.param(1, marks=pytest.mark.ptx)])


@by_unit
def test_units_keep_to_the_bounds(unit: Unit) -> None:
    x = floats(np.arange(0x3F800000, 0x40800000, 4099))
    with np.errstate(all="ignore"):
        rough, rough_root = reciprocal(x, unit), reciprocal_root(x, unit)
    exact = 1 / x.astype(np.float64)
    place = 2.0 ** (np.floor(np.log2(exact)) - 23)
    assert (np.abs(rough - exact) <= place).all()
    assert (np.abs(rough_root * np.sqrt(x.astype(np.float64)) - 1) <= RECIPROCAL_ROOT_ERROR).all()
    if unit is UNITS["largest"]:
        assert (rough >= exact).all()
        # more than an ulp of the seed, for some
        assert (
            np.abs(rough_root.astype(np.float64) * np.sqrt(x.astype(np.float64)) - 1) > 2.0**-23.5
        ).any()


def wrong_roots(bits: NDArray[np.integer], unit: Unit) -> list[int]:
    """Of these second moments, those whose root is not IEEE's: a root divided by itself is 1 only where it is."""
    x = floats(bits)
    found = ratios(np.sqrt(x), x, np.zeros_like(x), unit)
    return [int(b) for b in bits[found != 1]]


def test_no_seed_is_left_out() -> None:
    x = floats(np.arange(0x3F800000, 0x40800000, 61))
    with np.errstate(all="ignore"):
        for compute in (reciprocal, reciprocal_root):
            two, three = ([compute(x, always(side, most)) for side in (1, -1)] for most in (2, 3))
            assert all(np.array_equal(a, b) for a, b in zip(two, three, strict=True))


@by_seed
@by_stride
def test_roots(stride: int, unit: Unit) -> None:
    wrong = []
    for start in range(0x3F800000, 0x40800000, CHUNK * stride):
        bits = np.arange(start, min(start + CHUNK * stride, 0x40800000), stride)
        wrong += wrong_roots(bits, unit)
    is_large = unit in (UNITS["largest"], NEXT["next above"])
    assert set(wrong) <= set(LOW_ROOTS if is_large or unit is UNITS["random"] else ())
    if stride == 1 and is_large:
        assert wrong == list(LOW_ROOTS)


def test_the_two_roots_that_a_seed_may_spoil() -> None:
    bits = np.array(LOW_ROOTS)
    assert wrong_roots(bits, UNITS["largest"]) == list(LOW_ROOTS)
    for name in ("nearest", "smallest"):
        assert not wrong_roots(bits, UNITS[name])
    # scaled by an even power of two they are the same
    assert len(wrong_roots(bits - (40 << 23), UNITS["largest"])) == 2


def quotients(a: Float32, b: Float32, unit: Unit) -> Float32:
    return ratios(a, np.zeros_like(a), b, unit)


@by_seed
@by_stride
def test_reciprocals(stride: int, unit: Unit) -> None:
    """Of every significand. A quotient by a reciprocal that is IEEE's is IEEE's too (Markstein 1990)."""
    wrong = []
    for start in range(0x3F800000, 0x40000000, CHUNK * stride):
        bits = np.arange(start, min(start + CHUNK * stride, 0x40000000), stride)
        b = floats(bits)
        one = np.ones_like(b)
        wrong += [int(x) for x in bits[quotients(one, b, unit) != one / b]]
    assert set(wrong) <= {ALL_ONES}
    if stride == 1:
        is_small = unit in (UNITS["smallest"], NEXT["next below"])
        assert bool(wrong) == is_small or unit is UNITS["random"]


@by_stride
def test_the_denominator_whose_reciprocal_stays_rough(stride: int) -> None:
    """One seed of all ones does not lead to IEEE's reciprocal. Of its quotients those of powers of two are off."""
    for start in range(0x3F800000, 0x40800000, CHUNK * stride):
        a = floats(np.arange(start, min(start + CHUNK * stride, 0x40800000), stride))
        b = np.full_like(a, floats(np.array([ALL_ONES]))[0])
        for name in ("nearest", "largest"):
            assert (quotients(a, b, UNITS[name]) == a / b).all()
        is_power = np.frexp(a)[0] == 0.5
        assert ((quotients(a, b, UNITS["smallest"]) != a / b) == is_power).all()


def hardest_quotients(b: NDArray[np.int64], remainder: int) -> tuple[Float32, Float32]:
    """Quotients as close to a tie as there are: a * 2^k = t * b + remainder, where t is odd and has 25 bits.

    Args:
        b: odd significands of 24 bits.
        remainder: odd and small.
    """
    inverse = b.copy()  # modulo 2^3, and twice as many bits each time
    for _ in range(4):
        inverse = inverse * (2 - b * inverse) % 2**25
    pairs = []
    for shift in (24, 25):
        t = -remainder * inverse % 2**shift
        t = t + 2**24 if shift == 24 else t
        a = (t * b + remainder) >> shift
        kept = (t >= 2**24) & (a >= 2**23) & (a < 2**24)
        pairs.append((a[kept], b[kept]))
    a, b = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return (a * 2.0**-23).astype(np.float32), (b * 2.0**-23).astype(np.float32)


@by_unit
@pytest.mark.parametrize("stride", [997, pytest.param(2, marks=pytest.mark.ptx)])
def test_quotients_next_to_ties(stride: int, unit: Unit) -> None:
    every = np.arange(2**23 + 1, 2**24, 2 * (stride // 2))
    for remainder in (-3, -1, 1, 3):
        for start in range(0, len(every), CHUNK):
            a, b = hardest_quotients(every[start : start + CHUNK], remainder)
            assert len(a) > 0.3 * len(every[start : start + CHUNK])
            known = (b.view(np.uint32) == ALL_ONES) & (np.frexp(a)[0] == 0.5)
            assert ((quotients(a, b, unit) == a / b) | known).all()


@pytest.mark.skipif(bool(sass.unavailable()), reason=sass.unavailable())
def test_the_compilers_own_take_these_steps() -> None:
    """One correction of the seed, or of what it gives, and one of the quotient; other code is for extreme operands."""
    cubin = compiled(*FOR_HARDWARE, "-arch=sm_90", "-cubin", suffix=".cubin")
    kernels = {kernel.name: kernel for kernel in sass.disassemble(cubin)}
    for name, steps in {
        "root": ["MUFU", "FMUL", "FMUL", "FFMA", "FFMA"],
        "quotient": ["MUFU", "FFMA", "FFMA", "FFMA", "FFMA", "FFMA"],
    }.items():
        opcodes = [i.name for i in kernels[name].instructions]
        usual = opcodes[: opcodes.index("EXIT")]
        assert [o for o in usual if o in ("MUFU", "FMUL", "FFMA", "FADD")] == steps


@pytest.mark.gpu
def test_all_roots_and_reciprocals_on_a_gpu() -> None:
    program = compiled(*FOR_HARDWARE, "-arch=native", "-DSF_PROGRAM", suffix="")
    done = subprocess.run([program], capture_output=True, text=True, timeout=patience(5))
    assert done.stdout == "roots 0\nreciprocals 0\n", done.stderr
