// Reads and writes the weights and gradients of a tile by the vectors of avx512.h, a block of 32 at a time: one
// template for all dtypes and masters.
#pragma once

#include "cpu/avx512_codec.h"
#include "tables.h"

namespace sf {
namespace {

// Bytes per element of what is stored beside a parameter.
constexpr int bytes_of_master(int32_t master) {
  if (master == kNoMaster || master == kStochastic) return 0;
  return master == kMaster32 ? 4 : master == kSplit8 ? 1 : 2;
}

// Addresses of a tile's first elements.
struct TileWeights {
  void *param, *master;
  const void* grad;
  int32_t grad_dtype;  // Dtype
};

#if SF_AVX512

// The dtype of gradients is no parameter of any template: one branch per block costs nothing that can be measured, and
// there would be three times as much code.
SF_HOST_DEVICE EvenOdd<Numbers> read_grad(const TileWeights& tile, int64_t at, int64_t ahead) {
  switch (tile.grad_dtype) {
    case kBfloat16:
      prefetch_block<2>(tile.grad, at + ahead);
      return read_numbers<kBfloat16>(tile.grad, at);
    case kFloat16:
      prefetch_block<2>(tile.grad, at + ahead);
      return read_numbers<kFloat16>(tile.grad, at);
    default:
      prefetch_block<4>(tile.grad, at + ahead);
      return read_numbers<kFloat32>(tile.grad, at);
  }
}

// Weights whose parameter is a PARAM, with what MASTER stores beside it.
template <int PARAM, int MASTER>
struct Weights {
  static constexpr int param_bytes = PARAM == kFloat32 ? 4 : 2;
  static constexpr int master_bytes = bytes_of_master(MASTER);

  SF_HOST_DEVICE_MEMBER static EvenOdd<Numbers> read(const TileWeights& tile, int64_t at) {
    if constexpr (master_bytes != 0) {
      const uint16_t* const param = static_cast<const uint16_t*>(tile.param) + at;
      const void* const master = static_cast<const char*>(tile.master) + at * master_bytes;
      if constexpr (MASTER == kSplit8) return read_split(param, static_cast<const int8_t*>(master));
      if constexpr (MASTER == kSplit16) return read_split(param, static_cast<const int16_t*>(master));
      if constexpr (MASTER == kKahan) return read_kahan<PARAM>(param, static_cast<const uint16_t*>(master));
      if constexpr (MASTER == kMaster32) return read_master<PARAM>(param, static_cast<const float*>(master));
    }
    return read_numbers<PARAM>(tile.param, at);
  }

  // Adds to `range` what tells whether all weights of a chunk are finite and, where there are compensations, not so
  // large that a parameter could be infinite.
  SF_HOST_DEVICE_MEMBER static Numbers add_to_range(Numbers range, Numbers weight) {
    return multiply_add(weight, MASTER == kKahan ? weight : Numbers{}, range);
  }
  SF_HOST_DEVICE_MEMBER static bool is_in_range(Numbers range) {
    const float limit = MASTER == kKahan && PARAM == kFloat16 ? 65504.0f * 65504.0f : __builtin_inff();
    return _mm512_cmp_ps_mask(range, broadcast(limit), _CMP_LT_OQ) == 0xFFFF;
  }

  SF_HOST_DEVICE_MEMBER static void prefetch(const TileWeights& tile, int64_t at) {
    prefetch_block<param_bytes>(tile.param, at);
    if constexpr (master_bytes != 0) prefetch_block<master_bytes>(tile.master, at);
  }

  // Takes the weights of a block and 16 random bits per element. Returns 16 bits per element, whose upper byte is the
  // 8-bit remainder if there is one: that is left to write_remainders().
  SF_HOST_DEVICE_MEMBER static Bits write(const TileWeights& tile, int64_t at, EvenOdd<Bits> weight,
                                          const EvenOdd<Bits>& random) {
    if constexpr (PARAM == kFloat32) {
      write_float32(tile.param, at, weight);
    } else if constexpr (MASTER == kSplit8 || MASTER == kSplit16) {
      if constexpr (MASTER == kSplit8) weight = {weight.even + broadcast<0x80>(), weight.odd + broadcast<0x80>()};
      const Bits remainder = blend<0xFFFF0000>(weight.odd << 16, weight.even);
      if constexpr (MASTER == kSplit16) store(static_cast<int16_t*>(tile.master) + at, remainder);
      const EvenOdd<Bfloat16Lanes> rounded = {{weight.even + broadcast<0x8000>()}, {weight.odd + broadcast<0x8000>()}};
      write_rounded(tile.param, at, rounded);
      return remainder;
    } else if constexpr (PARAM == kBfloat16 && MASTER == kStochastic) {
      const EvenOdd<Bfloat16Lanes> rounded = {{weight.even + random.even}, {weight.odd + random.odd}};
      write_rounded(tile.param, at, rounded);
    } else {
      if constexpr (MASTER == kStochastic) {
        weight = {float16_steps(weight.even, random.even), float16_steps(weight.odd, random.odd)};
      }
      if constexpr (PARAM == kFloat16) weight = interleave(weight);
      const EvenOdd<Rounded<PARAM>> rounded = {to_nearest<PARAM>(weight.even), to_nearest<PARAM>(weight.odd)};
      write_rounded(tile.param, at, rounded);
      if constexpr (MASTER == kKahan) {
        const EvenOdd<Rounded<PARAM>> lost = {compensation<PARAM>(weight.even, rounded.even),
                                              compensation<PARAM>(weight.odd, rounded.odd)};
        write_rounded(tile.master, at, lost);
      }
      if constexpr (MASTER == kMaster32) {
        if constexpr (PARAM == kBfloat16) weight = interleave(weight);
        store_pair(static_cast<float*>(tile.master) + at, weight);
      }
    }
    return Bits{};
  }

  // Writes the 8-bit remainders of two blocks, from what write() returned.
  SF_HOST_DEVICE_MEMBER static void write_remainders(const TileWeights& tile, int64_t at, const Bits (&words)[2]) {
    if constexpr (MASTER == kSplit8) {
      store(static_cast<int8_t*>(tile.master) + at, pack_bytes(shift_words_right<8>(words[0]), words[1]));
    }
  }
};

#endif

}  // namespace
}  // namespace sf
