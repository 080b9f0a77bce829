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
def tile_stream(key, step, tile):
    """Return the state that all elements of a tile share: two uint32.

    Args:
        key, tile: int64, step: int32; scalars.
    """
    word = key.to(tl.uint64, bitcast=True) + step.to(tl.uint64) * 0x9E3779B97F4A7C15
    word = _scrambled(word)
    word = _scrambled(word + tile.to(tl.uint64) * 0xD1B54A32D192ED03)
    return word.to(tl.uint32), (word >> 32).to(tl.uint32)


@triton.jit
def random_bits(stream, index):
    """16 random bits for each element of a tile, as uint32: half of a word that two neighbours share.

    Args:
        stream: of `tile_stream`.
        index: uint32 block, within the tile.
    """
    word = stream[0] + (index >> 1) * 0x9E3779B9
    word = word ^ (word >> 16)
    word = word * 0x7FEB352D
    word = word ^ stream[1]
    word = word ^ (word >> 15)
    word = word * 0x846CA68B
    word = word ^ (word >> 16)
    return tl.where((index & 1) == 0, word & 0xFFFF, word >> 16)
