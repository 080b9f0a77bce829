// Counter-based random numbers for stochastic rounding: what an element gets depends on the seed, its parameter, the
// step and its own index, and on nothing else. stackelberg_fused/numerics/random_bits.py makes the same bits.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace sf {

// What all elements of a tile share.
struct Stream {
  uint32_t first, second;
};

// The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
SF_HOST_DEVICE uint64_t scrambled(uint64_t word) {
  word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9u;
  word = (word ^ (word >> 27)) * 0x94D049BB133111EBu;
  return word ^ (word >> 31);
}

SF_HOST_DEVICE Stream tile_stream(int64_t key, int32_t step, int64_t tile) {
  uint64_t word = scrambled(static_cast<uint64_t>(key) + static_cast<uint64_t>(step) * 0x9E3779B97F4A7C15u);
  word = scrambled(word + static_cast<uint64_t>(tile) * 0xD1B54A32D192ED03u);
  return {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)};
}

// How far apart the words of neighbouring pairs are before they are mixed.
constexpr uint32_t kIndexStride = 0x9E3779B9u;

// All but the last step for a word, or for each of a vector of them.
template <typename Word>
SF_HOST_DEVICE Word mixed_bits(const Stream& stream, Word word) {
  word ^= word >> 16;
  word *= 0x7FEB352Du;
  // word ^ second, and then that ^ that >> 15: of what all elements share the shift is taken once
  word = word ^ (word >> 15) ^ (stream.second ^ (stream.second >> 15));
  word *= 0x846CA68Bu;
  return word;
}

// The random bits of two neighbours of a tile, of elements 2 * pair and the next: the lower half and the upper one.
SF_HOST_DEVICE uint32_t random_word(const Stream& stream, uint32_t pair) {
  const uint32_t word = mixed_bits(stream, stream.first + pair * kIndexStride);
  return word ^ (word >> 16);
}

// 16 random bits for the element `index` of a tile. Its weight and its moments share them: what one of them gains is
// of no consequence to the mean of the others, and numbers of their own would cost more than rounding by them.
SF_HOST_DEVICE uint32_t random_bits(const Stream& stream, uint32_t index) {
  const uint32_t word = random_word(stream, index / 2);
  return index % 2 ? word >> 16 : word & 0xFFFF;
}

}  // namespace sf
