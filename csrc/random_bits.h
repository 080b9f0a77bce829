// Counter-based random numbers for stochastic rounding. The bits of an element depend on the seed, its parameter, the
// step and its index in the whole parameter, and on nothing else: not on the part of it that a rank holds.
// stackelberg_fused/numerics/random_bits.py makes the same bits.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "tables.h"

namespace sf {

// The part of the hash that kTileElements elements share, the first of which has an index divisible by kTileElements.
struct Stream {
  uint32_t first, second;
};

// The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
SF_HOST_DEVICE uint64_t scrambled(uint64_t word) {
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
  return word ^ (word >> 31);
}

SF_HOST_DEVICE Stream stream_of(int64_t key, int32_t step, int64_t index) {
  uint64_t word = scrambled(static_cast<uint64_t>(key) + static_cast<uint64_t>(step) * 0x9E3779B97F4A7C15u);
  word = scrambled(word + static_cast<uint64_t>(index) * 0xD1B54A32D192ED03u);
  return {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)};
}

// The difference between the words of neighbouring pairs before they are mixed.
constexpr uint32_t kIndexStride = 0x9E3779B9u;

// All steps of the hash but the last, for a word or for each of a vector of words.
template <typename Word>
SF_HOST_DEVICE Word mixed_bits(const Stream& stream, Word word) {
  word ^= word >> 16;
  word *= 0x7FEB352Du;
  // w = word ^ second; w ^= w >> 15: written so that the shift of `second` is computed once for all elements
  word = word ^ (word >> 15) ^ (stream.second ^ (stream.second >> 15));
  word *= 0x846CA68Bu;
  return word;
}

// The random bits of elements 2 * pair (lower 16 bits) and 2 * pair + 1 (upper 16 bits) of a stream.
SF_HOST_DEVICE uint32_t random_word(const Stream& stream, uint32_t pair) {
  const uint32_t word = mixed_bits(stream, stream.first + pair * kIndexStride);
  return word ^ (word >> 16);
}

// 16 random bits for element `index` of a stream. Its weight and its moments share them: each is rounded without bias
// whatever happens to the others, and separate numbers would cost more than the rounding itself.
SF_HOST_DEVICE uint32_t random_bits(const Stream& stream, uint32_t index) {
  const uint32_t word = random_word(stream, index / 2);
  return index % 2 ? word >> 16 : word & 0xFFFF;
}

// The random bits of a tile. One that does not begin where a stream does may end in the next.
struct TileRandom {
  Stream streams[2];
  uint32_t first;  // place of the tile's first element in the first stream

  // 16 random bits for element i of the tile.
  SF_HOST_DEVICE_MEMBER uint32_t bits(uint32_t i) const {
    const uint32_t index = first + i;
    return random_bits(streams[index >= kTileElements], index % kTileElements);
  }
};

SF_HOST_DEVICE TileRandom tile_random(int64_t key, int32_t step, int64_t whole) {
  const int64_t index = whole / kTileElements;
  return {{stream_of(key, step, index), stream_of(key, step, index + 1)}, static_cast<uint32_t>(whole % kTileElements)};
}

}  // namespace sf
