"""Low-precision storage formats: all codes, all ties, and the statistics of stochastic rounding."""

from __future__ import annotations

import pytest
import torch

from stackelberg_fused.numerics.codec import (
    BLOCK,
    FIRST_MOMENT,
    HALF,
    SECOND_MOMENT,
    decode_blocks,
    encode_blocks,
    join,
    split,
    to_bfloat16,
    to_float16,
)
from stackelberg_fused.numerics.random_bits import random_bits, stream_key

CODES = pytest.mark.parametrize("code", [FIRST_MOMENT, SECOND_MOMENT], ids=["first", "second"])


def bits_of(x):
    return x.view({2: torch.int16, 4: torch.int32}[x.element_size()])


def from_bits(bits, dtype):
    return bits.to({2: torch.int16, 4: torch.int32}[dtype.itemsize]).view(dtype)


def draws(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**16, (count,), generator=generator)


def spread(count, code, seed=0):
    """Return values of many magnitudes, of both signs if the format has a sign."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator) * 10 ** torch.empty(count).uniform_(
        -12, 6, generator=generator
    )
    return x if code.is_signed else x.abs()


@CODES
def test_every_code_decodes_and_encodes_to_itself(code):
    numbers = torch.arange(code.largest + 1 - 5)  # up to 1.0
    if code.is_signed:
        numbers = torch.cat([numbers, numbers + 128])
    blocks = torch.zeros(len(numbers), BLOCK, dtype=torch.uint8)
    blocks[:, 0], blocks[:, 1] = code.one * 8, numbers
    for scale in (1, 2, 100, 127, 200, 253):
        scales = torch.full((len(numbers),), scale, dtype=torch.uint8)
        x = decode_blocks(blocks.view(-1), scales, code)
        for random in (HALF, torch.tensor(0), torch.tensor(0xFFFF)):
            again, again_scales = encode_blocks(x, random, code)
            assert torch.equal(again_scales, scales)
            found = decode_blocks(again, again_scales, code)
            assert torch.equal(bits_of(found), bits_of(x))


@CODES
def test_the_error_is_within_its_bound(code):
    x = spread(BLOCK * 4000, code)
    for random, share in ((HALF, 0.5), (draws(len(x)), 1.0)):
        codes, scales = encode_blocks(x, random, code)
        found = decode_blocks(codes, scales, code)
        scale = (2.0 ** (scales.double() - 127)).repeat_interleave(BLOCK)
        step = torch.maximum(
            2.0 ** torch.floor(torch.log2(x.double().abs())) / 8, scale * 2.0 ** -(code.one + 2)
        )
        # a positive number that would become zero becomes the smallest there is
        allowed = torch.where(found == scale * 2.0 ** -(code.one + 2), step, share * step)
        assert ((found.double() - x).abs() <= allowed * (1 + 1e-6)).all()


@CODES
def test_rounding_is_unbiased(code):
    value = torch.tensor([0.737, 0.1234, 3.3e-3, 1.0, 2.1e-4]).repeat_interleave(40000)
    if code.is_signed:
        value = torch.cat([value, torch.full((40000,), 3e-6), -value])
    blocks = torch.zeros(len(value), BLOCK)
    blocks[:, 0], blocks[:, 1] = 1.0, value
    random = random_bits(stream_key(1, 0, 0), 7, blocks.numel(), torch.device("cpu"))
    codes, scales = encode_blocks(blocks.view(-1), random, code)
    found = decode_blocks(codes, scales, code).view(-1, BLOCK)[:, 1].double()
    for one in value.unique().tolist():
        sample = found[value == one]
        deviation = (sample - one).abs().max().item()
        assert abs(sample.mean().item() - one) <= 5 * deviation / len(sample) ** 0.5, one


@CODES
def test_zeros_denormals_and_extremes(code):
    zeros = torch.zeros(2 * BLOCK + 5)
    if code.is_signed:
        zeros[3] = -0.0
    codes, scales = encode_blocks(zeros, draws(len(zeros)), code)
    assert not scales.any()
    assert torch.equal(bits_of(decode_blocks(codes, scales, code)), bits_of(zeros))
    # multiples of what the smallest scale can hold come back as they are
    quantum = 2.0**-143 if code.is_signed else 2.0**-149
    denormal = torch.arange(BLOCK).clamp(max=8) * quantum
    codes, scales = encode_blocks(denormal, draws(BLOCK), code)
    assert torch.equal(decode_blocks(codes, scales, code), denormal)
    largest = torch.full((BLOCK,), torch.finfo(torch.float32).max)
    codes, scales = encode_blocks(largest, draws(BLOCK), code)
    assert decode_blocks(codes, scales, code).isfinite().all()


@CODES
def test_one_element_poisons_no_other(code):
    x = spread(3 * BLOCK, code)
    clean = decode_blocks(*encode_blocks(x, HALF, code), code)
    for bad in (torch.nan, torch.inf, -torch.inf) if code.is_signed else (torch.nan, torch.inf):
        poisoned = x.clone()
        at = BLOCK + int(x[BLOCK : 2 * BLOCK].abs().argmin())
        poisoned[at] = bad
        found = decode_blocks(*encode_blocks(poisoned, HALF, code), code)
        others = torch.arange(len(x)) != at
        assert torch.equal(found[others], clean[others])
        assert torch.equal(found[at : at + 1].isnan(), torch.tensor([bad != bad]))
        assert bad != bad or found[at] == bad


def test_no_second_moment_becomes_zero():
    x = torch.zeros(BLOCK)
    x[0], x[1], x[2] = 1.0, 1e-30, 2.0**-149
    found = decode_blocks(*encode_blocks(x, torch.tensor(0), SECOND_MOMENT), SECOND_MOMENT)
    assert (found[1:3] > 0).all()
    assert not found[3:].any()


def all_bfloat16():
    return from_bits(torch.arange(-(2**15), 2**15), torch.bfloat16)


@pytest.mark.parametrize("lower", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0080, 0x7F80, 0xFF80])
def test_split16_is_exact_over_every_tie(lower):
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int64) << 16
    weight = from_bits(upper + lower, torch.float32)
    part, remainder = split(weight, 16)
    nan = weight.isnan()
    assert part[nan].isnan().all()
    assert join(part, remainder)[nan].isnan().all()
    assert torch.equal(bits_of(join(part, remainder)[~nan]), bits_of(weight[~nan]))
    # rounded to nearest, ties away from zero: as if to even, but for ties
    to_even = weight.to(torch.bfloat16)
    if lower != 0x8000:
        assert torch.equal(bits_of(part[~nan]), bits_of(to_even[~nan]))
    else:
        away = from_bits((upper >> 16) + 1, torch.bfloat16)
        assert torch.equal(bits_of(part[~nan]), bits_of(away[~nan]))


def test_split8_keeps_24_bits():
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=torch.Generator().manual_seed(0))
    weight = from_bits(bits, torch.float32)
    weight = weight[weight.abs() < 3e38]
    part, remainder = split(weight, 8)
    assert remainder.dtype is torch.int8
    found = join(part, remainder)
    error = (bits_of(found).long() - bits_of(weight).long()).abs()
    assert error.max() <= 0x80
    again = split(found, 8)
    assert torch.equal(bits_of(again[0]), bits_of(part))
    assert torch.equal(again[1], remainder)
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0])
    found = join(*split(special, 8))
    assert torch.equal(bits_of(found[[0, 1, 3, 4]]), bits_of(special[[0, 1, 3, 4]]))
    assert found[2].isnan()


@pytest.mark.parametrize(
    "rounded, dtype", [(to_bfloat16, torch.bfloat16), (to_float16, torch.float16)]
)
def test_stochastic_rounding_of_weights(rounded, dtype):
    # what fits stays, whatever the random number
    every = from_bits(torch.arange(-(2**15), 2**15), dtype)
    every = every[~every.isnan()]
    for random in (torch.tensor(0), HALF, torch.tensor(0xFFFF)):
        assert torch.equal(bits_of(rounded(every.float(), random)), bits_of(every))
    assert rounded(torch.tensor([torch.nan]), HALF).isnan().all()
    # what does not is rounded to a neighbour, without a bias
    values = torch.tensor([1.2345, -0.8765, 3.1e-5, -4.4e-7, 1e-3, 60000.7])
    x = values.repeat_interleave(50_000)
    random = random_bits(stream_key(3, 1, 2), 11, len(x), torch.device("cpu"))
    found = rounded(x, random).double().view(len(values), -1)
    for value, sample in zip(values.double().tolist(), found, strict=True):
        assert len(sample.unique()) <= 2
        width = (sample.max() - sample.min()).item()
        assert abs(sample.mean().item() - value) <= 5 * width / len(sample) ** 0.5
    # and to nearest where the number is the average one
    nearest = rounded(x, HALF)
    assert torch.equal(bits_of(nearest), bits_of(x.to(dtype)))
