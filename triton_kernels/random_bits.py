"""Counter-based random numbers in Triton: the bits of csrc/random_bits.h."""

import triton
import triton.language as tl


@triton.jit
def _scrambled(word):
    """Apply the finalizer of SplitMix64 (Steele, Lea & Flood 2014)."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB
    return word ^ (word >> 31)


@triton.jit
def stream_of(key, step, index):
    """Return the state that as many elements share as a tile may have: two uint32.

    Args:
        key, index: int64, step: int32; scalars.
    """
    word = key.to(tl.uint64, bitcast=True) + step.to(tl.uint64) * 0x9E3779B97F4A7C15
    word = _scrambled(word)
    word = _scrambled(word + index.to(tl.uint64) * 0xD1B54A32D192ED03)
    return word.to(tl.uint32), (word >> 32).to(tl.uint32)


@triton.jit
def random_bits(stream, index):
    """16 random bits for each element of a stream, as uint32: half of a word that two neighbours share.

    Args:
        stream: of `stream_of`; scalars, or one for each element.
        index: uint32 block, within the stream.
    """
    word = stream[0] + (index >> 1) * 0x9E3779B9
    word = word ^ (word >> 16)
    word = word * 0x7FEB352D
    word = word ^ stream[1]
    word = word ^ (word >> 15)
    word = word * 0x846CA68B
    word = word ^ (word >> 16)
    return tl.where((index & 1) == 0, word & 0xFFFF, word >> 16)


@triton.jit
def random_bits_of_tile(key, step, whole, within, TILE: tl.constexpr):
    """16 random bits for each element of a tile that need not begin where a stream does, and may end in the next.

    Args:
        key, step: as in `stream_of`.
        whole: index of the tile's first element in the whole parameter, int64.
        within: int32 block, places of elements within the tile.
    """
    first, second = stream_of(key, step, whole // TILE)
    next_first, next_second = stream_of(key, step, whole // TILE + 1)
    index = (whole % TILE).to(tl.int32) + within
    is_next = index >= TILE
    stream = tl.where(is_next, next_first, first), tl.where(is_next, next_second, second)
    return random_bits(stream, (index % TILE).to(tl.uint32))
