// Reads and writes the weights and gradients of a tile by the vectors of avx512.h, a block of 32 at a time: one struct
// per format.
#pragma once

#include "cpu/avx512_codec.h"
#include "tables.h"

namespace sf {
namespace {

// Addresses of a tile's first elements.
struct TileWeights {
  void* param;
  const void* grad;
  int8_t* remainder;
};

#if SF_AVX512

// write() takes the weights of a block and 16 random bits per element. It returns 16 bits per element, whose upper byte
// is the 8-bit remainder if there is one.
template <int MASTER>
struct Bfloat16Weights {
  static constexpr bool has_remainder = MASTER == kSplit8;

  SF_HOST_DEVICE_MEMBER static EvenOdd<Numbers> read(const TileWeights& tile, int64_t at) {
    const uint16_t* const param = static_cast<const uint16_t*>(tile.param) + at;
    if constexpr (has_remainder) return read_split8(param, tile.remainder + at);
    return read_bfloat16(param);
  }
  SF_HOST_DEVICE_MEMBER static EvenOdd<Numbers> read_grad(const TileWeights& tile, int64_t at) {
    return read_bfloat16(static_cast<const uint16_t*>(tile.grad) + at);
  }
  SF_HOST_DEVICE_MEMBER static void prefetch(const TileWeights& tile, int64_t at) {
    __builtin_prefetch(static_cast<const uint16_t*>(tile.param) + at);
    __builtin_prefetch(static_cast<const uint16_t*>(tile.grad) + at);
    // half of these prefetches repeat the last cache line
    if constexpr (has_remainder) __builtin_prefetch(tile.remainder + at);
  }
  SF_HOST_DEVICE_MEMBER static Bits write(const TileWeights& tile, int64_t at, EvenOdd<Bits> weight,
                                          const EvenOdd<Bits>& random) {
    Bits remainder = Bits{};
    if constexpr (MASTER == kSplit8) {
      weight = {weight.even + broadcast<0x80>(), weight.odd + broadcast<0x80>()};
      remainder = blend<0xFFFF0000>(weight.odd << 16, weight.even);
      weight = {weight.even + broadcast<0x8000>(), weight.odd + broadcast<0x8000>()};
    } else if constexpr (MASTER == kStochastic) {
      weight = {weight.even + random.even, weight.odd + random.odd};
    } else {
      weight = {to_nearest(weight.even), to_nearest(weight.odd)};
    }
    store(static_cast<uint16_t*>(tile.param) + at, upper_halves(weight));
    return remainder;
  }
};

struct Float32Weights {
  static constexpr bool has_remainder = false;

  SF_HOST_DEVICE_MEMBER static EvenOdd<Numbers> read(const TileWeights& tile, int64_t at) {
    return deinterleave(load_pair<Numbers>(static_cast<const float*>(tile.param) + at));
  }
  SF_HOST_DEVICE_MEMBER static EvenOdd<Numbers> read_grad(const TileWeights& tile, int64_t at) {
    return deinterleave(load_pair<Numbers>(static_cast<const float*>(tile.grad) + at));
  }
  SF_HOST_DEVICE_MEMBER static void prefetch(const TileWeights& tile, int64_t at) {
    for (int half = 0; half < kBlock; half += kBlock / 2) {
      __builtin_prefetch(static_cast<const float*>(tile.param) + at + half);
      __builtin_prefetch(static_cast<const float*>(tile.grad) + at + half);
    }
  }
  SF_HOST_DEVICE_MEMBER static Bits write(const TileWeights& tile, int64_t at, const EvenOdd<Bits>& weight,
                                          const EvenOdd<Bits>&) {
    store_pair(static_cast<float*>(tile.param) + at, interleave({as_numbers(weight.even), as_numbers(weight.odd)}));
    return Bits{};
  }
};

#endif

}  // namespace
}  // namespace sf
