// Weights and gradients of a tile in the lanes of avx512.h, a block of 32 at a time: one struct for each way to keep
// them.
#pragma once

#include "cpu/avx512_codec.h"
#include "tables.h"

namespace sf {
namespace {

struct WeightsOfTile {
  void* param;
  const void* grad;
  int8_t* remainder;
};

#if SF_LANES

// The halves of a block and its 16 random bits for each element are given to write(), which may leave 16 bits for each
// of which the upper byte is a remainder.
template <int MASTER>
struct Bfloat16Weights {
  static constexpr bool has_remainder = MASTER == kSplit8;

  SF_HOST_DEVICE_MEMBER static Halves<Numbers> read(const WeightsOfTile& of, int64_t at) {
    const uint16_t* const param = static_cast<const uint16_t*>(of.param) + at;
    if constexpr (has_remainder) return read_split8(param, of.remainder + at);
    return read_bfloat16(param);
  }
  SF_HOST_DEVICE_MEMBER static Halves<Numbers> read_grad(const WeightsOfTile& of, int64_t at) {
    return read_bfloat16(static_cast<const uint16_t*>(of.grad) + at);
  }
  SF_HOST_DEVICE_MEMBER static void ask_for(const WeightsOfTile& of, int64_t at) {
    __builtin_prefetch(static_cast<const uint16_t*>(of.param) + at);
    __builtin_prefetch(static_cast<const uint16_t*>(of.grad) + at);
    // every other time it is a cache line that has been asked for
    if constexpr (has_remainder) __builtin_prefetch(of.remainder + at);
  }
  SF_HOST_DEVICE_MEMBER static Bits write(const WeightsOfTile& of, int64_t at, Halves<Bits> weight,
                                          const Halves<Bits>& random) {
    Bits remainder = Bits{};
    if constexpr (MASTER == kSplit8) {
      weight = {weight.even + all<0x80>(), weight.odd + all<0x80>()};
      remainder = chosen<0xFFFF0000>(weight.odd << 16, weight.even);
      weight = {weight.even + all<0x8000>(), weight.odd + all<0x8000>()};
    } else if constexpr (MASTER == kStochastic) {
      weight = {weight.even + random.even, weight.odd + random.odd};
    } else {
      weight = {to_nearest(weight.even), to_nearest(weight.odd)};
    }
    store(static_cast<uint16_t*>(of.param) + at, upper_halves(weight));
    return remainder;
  }
};

struct Float32Weights {
  static constexpr bool has_remainder = false;

  SF_HOST_DEVICE_MEMBER static Halves<Numbers> read(const WeightsOfTile& of, int64_t at) {
    return taken_apart(load_halves<Numbers>(static_cast<const float*>(of.param) + at));
  }
  SF_HOST_DEVICE_MEMBER static Halves<Numbers> read_grad(const WeightsOfTile& of, int64_t at) {
    return taken_apart(load_halves<Numbers>(static_cast<const float*>(of.grad) + at));
  }
  SF_HOST_DEVICE_MEMBER static void ask_for(const WeightsOfTile& of, int64_t at) {
    for (int half = 0; half < kBlock; half += kBlock / 2) {
      __builtin_prefetch(static_cast<const float*>(of.param) + at + half);
      __builtin_prefetch(static_cast<const float*>(of.grad) + at + half);
    }
  }
  SF_HOST_DEVICE_MEMBER static Bits write(const WeightsOfTile& of, int64_t at, const Halves<Bits>& weight,
                                          const Halves<Bits>&) {
    store_halves(static_cast<float*>(of.param) + at, put_together({as_numbers(weight.even), as_numbers(weight.odd)}));
    return Bits{};
  }
};

#endif

}  // namespace
}  // namespace sf
