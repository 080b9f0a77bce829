"""fma of float32 is rounded once (section 9.7.3), by exact arithmetic, above all where a second rounding would show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from .definitions import F32, NAN, floats, same
from .floating import flush
from .one_instruction import apply

pytestmark = pytest.mark.slow  # together; of this folder the quick sample takes test_parser.py

Words = NDArray[np.uint32]
Triples = tuple[Words, Words, Words]


def assert_rounded_once(a: Words, b: Words, c: Words) -> None:
    found = apply("fma.rn.f32", np.uint32, a, b, c)
    expected = [F32.fma(*triple) for triple in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    assert same(found, expected, F32)


def _words(x: NDArray[np.floating]) -> Words:
    with np.errstate(all="ignore"):
        return np.asarray(x).astype(np.float32).view(np.uint32)


def _signs(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    return random.choice([-1.0, 1.0], count)


def half_way_products(random: np.random.Generator, count: int) -> Triples:
    """Products of 25 bits, the last of which is one; what is added decides, however small it is."""
    a, b = (2 * random.integers(1 << 11, 1 << 12, count) + 1 for _ in range(2))
    scale = 2.0 ** random.integers(-40, 40, count)
    tiny = 2.0 ** random.integers(-149, -100, count) * random.integers(-1, 2, count)
    return _words(a * scale), _words(b * _signs(random, count)), _words(tiny)


def half_way_sums(random: np.random.Generator, count: int) -> Triples:
    """The product is half a unit in the last place of the addend, more or less."""
    c = random.integers(1 << 23, 1 << 24, count).astype(np.float64)
    ulps = 2.0 ** -random.integers(10, 24, count) * random.integers(-1, 2, count)
    scale = 2.0 ** random.integers(-60, 60, count)
    return (
        _words(0.5 * (1 + ulps) * _signs(random, count)),
        _words(scale * (1 + 2.0**-23 * random.integers(-1, 2, count))),
        _words(c * scale),
    )


def sums_that_cancel(random: np.random.Generator, count: int) -> Triples:
    """The addend is the product rounded, or a neighbour: only what rounding would drop is left."""
    a, b = (
        _words(random.normal(size=count) * 2.0 ** random.integers(-30, 30, count)) for _ in "ab"
    )
    product = a.view(np.float32).astype(np.float64) * b.view(np.float32)
    return a, b, (_words(-product).view(np.int32) + random.integers(-2, 3, count)).astype(np.uint32)


def subnormal_results(random: np.random.Generator, count: int) -> Triples:
    """Half-way between subnormal numbers, or next to that by far less than a float64 of the sum can hold."""
    c = random.integers(-(1 << 22), 1 << 22, count) * 2.0**-149
    k = random.integers(0, 4, count) * 2.0**-23
    odd = 2 * random.integers(0, 2, count) + 1
    return (
        _words(odd * 2.0**-75 * (1 + k)),
        _words(2.0**-75 * (1 - k) * _signs(random, count)),
        _words(c),
    )


def results_near_the_largest(random: np.random.Generator, count: int) -> Triples:
    a = (1 << 24) - random.integers(1, 4, count)
    b = (1 << 24) - random.integers(1, 4, count)
    c = random.integers(-4, 5, count) * 2.0 ** random.integers(78, 106, count)
    return _words(a * 2.0**40), _words(b * 2.0**40 * _signs(random, count)), _words(c)


def any_words(random: np.random.Generator, count: int) -> Triples:
    a, b, c = random.integers(0, 1 << 32, (3, count), np.uint32)
    return a, b, c


@pytest.mark.parametrize(
    "family",
    [
        half_way_products,
        half_way_sums,
        sums_that_cancel,
        subnormal_results,
        results_near_the_largest,
        any_words,
    ],
)
def test_fma_is_rounded_once(family: Callable[[np.random.Generator, int], Triples]) -> None:
    assert_rounded_once(*family(np.random.default_rng(0), 20_000))


def test_the_families_tell_one_rounding_from_two() -> None:
    """Rounded as a float64 first and then again, some results are others."""
    for family in (half_way_products, half_way_sums, subnormal_results):
        a, b, c = (
            x.view(np.float32).astype(np.float64) for x in family(np.random.default_rng(0), 20_000)
        )
        twice = _words(a * b + c)
        once = apply("fma.rn.f32", np.uint32, *map(_words, (a, b, c)))
        assert (twice != once).sum() > 100, family.__name__


def test_fma_of_numbers_that_behave_unlike_others() -> None:
    values = np.array(floats(F32), np.uint32)[::2]
    a, b, c = (x.ravel() for x in np.meshgrid(values, values, values, indexing="ij"))
    assert_rounded_once(a, b, c)
    zero, minus_zero, inf = 0, 1 << 31, 0x7F800000
    assert F32.fma(minus_zero, zero, minus_zero) == minus_zero  # the definition's own corners
    assert F32.fma(minus_zero, zero, zero) == zero
    assert F32.fma(inf, zero, zero) == NAN
    assert F32.fma(F32.one, inf, inf | minus_zero) == NAN


def test_flushing_keeps_signs_and_normal_numbers() -> None:
    words = np.array([0x00000001, 0x807FFFFF, 0x00800000, 0x80800000, 0x7F800000], np.uint32)
    assert flush(words.view(np.float32)).view(np.uint32).tolist() == [
        *(0, 0x80000000),
        *(0x00800000, 0x80800000, 0x7F800000),
    ]
