// Reads and writes the weights and gradients of a tile by the vectors of avx512.h, a block of 32 at a time: one template
// for all dtypes and masters.
#pragma once

#include "cpu/avx512_codec.h"
#include "tables.h"

namespace sf {
namespace {

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
  static constexpr int param = PARAM, master = MASTER;
  static constexpr int param_bytes = PARAM == kFloat32 ? 4 : 2;
  static constexpr int master_bytes =
      MASTER == kSplit8 ? 1 : MASTER == kSplit16 || MASTER == kKahan ? 2 : MASTER == kMaster32 ? 4 : 0;

  SF_HOST_DEVICE_MEMBER static EvenOdd<Numbers> read(const TileWeights& tile, int64_t at) {
    if constexpr (MASTER == kSplit8) return read_split<int8_t>(tile.param, tile.master, at);
    if constexpr (MASTER == kSplit16) return read_split<int16_t>(tile.param, tile.master, at);
    const EvenOdd<Numbers> stored = read_numbers<PARAM>(tile.param, at);
    if constexpr (MASTER == kKahan) {
      const EvenOdd<Numbers> lost = read_numbers<PARAM>(tile.master, at);
      return {compensated<PARAM>(stored.even, lost.even), compensated<PARAM>(stored.odd, lost.odd)};
    }
    if constexpr (MASTER == kMaster32) {
      const EvenOdd<Numbers> whole = read_numbers<kFloat32>(tile.master, at);
      return {current(stored.even, whole.even), current(stored.odd, whole.odd)};
    }
    return stored;
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
      write_param(tile, at, {{weight.even + broadcast<0x8000>()}, {weight.odd + broadcast<0x8000>()}});
      return remainder;
    } else if constexpr (MASTER == kStochastic) {
      write_param(tile, at,
                  {to_stochastic<PARAM>(weight.even, random.even), to_stochastic<PARAM>(weight.odd, random.odd)});
    } else {
      const EvenOdd<Rounded<PARAM>> rounded = {to_nearest<PARAM>(weight.even), to_nearest<PARAM>(weight.odd)};
      write_param(tile, at, rounded);
      if constexpr (MASTER == kMaster32) write_float32(tile.master, at, weight);
      if constexpr (MASTER == kKahan) {
        const EvenOdd<Rounded<PARAM>> lost = {
            to_nearest<PARAM>(compensation(as_numbers(weight.even), numbers_of(rounded.even))),
            to_nearest<PARAM>(compensation(as_numbers(weight.odd), numbers_of(rounded.odd)))};
        store(static_cast<uint16_t*>(tile.master) + at, in_memory_order(lost));
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

 private:
  SF_HOST_DEVICE_MEMBER static void write_param(const TileWeights& tile, int64_t at,
                                                const EvenOdd<Rounded<PARAM>>& rounded) {
    store(static_cast<uint16_t*>(tile.param) + at, in_memory_order(rounded));
  }
  // The float32 weight, or the parameter if someone has changed it since.
  SF_HOST_DEVICE_MEMBER static Numbers current(Numbers stored, Numbers whole) {
    const Bits rounded = as_bits(numbers_of(to_nearest<PARAM>(as_bits(whole))));
    return rounded == as_bits(stored) ? whole : stored;
  }
};

#endif

}  // namespace
}  // namespace sf
