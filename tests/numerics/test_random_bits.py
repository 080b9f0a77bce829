"""Counter-based random numbers: reproducible from their counters, uniform and uncorrelated."""

from __future__ import annotations

import itertools

import pytest
import torch

from stackelberg_fused.native.tables import TILE_ELEMENTS
from stackelberg_fused.numerics.random_bits import random_bits, stream_key

HOST = torch.device("cpu")
COUNT = 4 * TILE_ELEMENTS


def draw(seed=0, group=0, position=0, step=1, count=COUNT):
    return random_bits(stream_key(seed, group, position), step, count, HOST)


def test_numbers_depend_on_their_counters_alone():
    assert torch.equal(draw(count=100), draw()[:100])
    assert draw(count=1).shape == (1,)
    assert draw(count=0).shape == (0,)
    assert draw().min() >= 0
    assert draw().max() < 2**16


def test_golden_values():
    """Every backend must give these values; another sequence would break the resumption of a run."""
    assert draw(3, 1, 2, 5, 4).tolist() == [27501, 22686, 32184, 45580]


@pytest.mark.parametrize("half", [0, 1], ids=["lower", "upper"])
def test_halves_of_words_are_uniform(half):
    found = draw(count=128 * TILE_ELEMENTS)[half::2]
    counts = torch.bincount(found >> 8, minlength=256).double()
    expected = len(found) / 256
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 160 < chi_square < 370  # 255 degrees of freedom, five standard deviations
    for bit in range(16):
        share = ((found >> bit) & 1).double().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / len(found) ** 0.5


def correlation(a, b):
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return ((a * b).mean() / (a.std() * b.std())).item()


def test_streams_are_not_correlated():
    near = [draw(), draw(step=2), draw(position=1), draw(group=1), draw(seed=1)]
    tiles = draw().view(4, -1)
    pairs = [*itertools.combinations(near, 2), *itertools.combinations(tiles, 2)]
    pairs += [(draw()[:-lag], draw()[lag:]) for lag in (1, 2, 31, 32)]
    for a, b in pairs:
        bound = 5 / len(a) ** 0.5
        assert abs(correlation(a, b)) < bound
        assert abs(correlation(a & 0xFF, b >> 8)) < bound


def test_halves_of_a_word_are_not_correlated():
    lower, upper = draw(count=128 * TILE_ELEMENTS).view(-1, 2).unbind(1)
    assert abs(correlation(lower, upper)) < 5 / len(lower) ** 0.5
