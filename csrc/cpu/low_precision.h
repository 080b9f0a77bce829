// Tiles of parameters that are not float32 with float32 state: a chunk at a time is decoded into arrays of float32,
// updated there as any other, and encoded. Part of step.cpp, and compiled with it for each instruction set.
#pragma once

#include <cstring>

#include "codec.h"
#include "format.h"
#include "random_bits.h"
#include "tables.h"

namespace sf {
namespace {

constexpr int64_t kChunk = 512;
static_assert(kTileElements % kChunk == 0 && kChunk % kBlock == 0);

template <typename T>
T* pointer(int64_t address, int64_t offset) {
  return address ? reinterpret_cast<T*>(address) + offset : nullptr;
}

// Random numbers of the elements of a tile from `first`, which is even, on; of one more where `count` is odd.
inline void draw(const Stream& stream, uint32_t first, int64_t count, uint32_t* __restrict out) {
  const Stream of_tile = stream;
  // counted in the 32 bits that are mixed, or half of the work would be to make them of 64
  for (uint32_t i = 0; i < (static_cast<uint32_t>(count) + 1) / 2; ++i) {
    const uint32_t word = random_word(of_tile, first / 2 + i);
    out[2 * i] = word & 0xFFFF, out[2 * i + 1] = word >> 16;
  }
}

// float32 of `count` elements at an address.
inline void widen(int64_t dtype, int64_t address, int64_t offset, int64_t count, float* __restrict out) {
  if (dtype == kFloat32) {
    const float* __restrict in = pointer<const float>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = in[i];
  } else if (dtype == kBfloat16) {
    const uint16_t* __restrict in = pointer<const uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = from_bfloat16(in[i]);
  } else {
    const uint16_t* __restrict in = pointer<const uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = from_float16(in[i]);
  }
}

inline void narrow(int64_t dtype, const float* __restrict in, int64_t address, int64_t offset, int64_t count) {
  if (dtype == kFloat32) {
    float* __restrict out = pointer<float>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = in[i];
  } else if (dtype == kBfloat16) {
    uint16_t* __restrict out = pointer<uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = to_bfloat16(in[i]);
  } else {
    uint16_t* __restrict out = pointer<uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = to_float16(in[i]);
  }
}

// The weights that parameters, and what is stored beside them, stand for.
inline void read_weights(const Record& record, const Format& format, int64_t offset, int64_t count,
                         float* __restrict weight) {
  if (format.master == kSplit16) {
    const uint16_t* __restrict part = pointer<const uint16_t>(record.param, offset);
    const int16_t* __restrict remainder = pointer<const int16_t>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) weight[i] = join<16>(part[i], remainder[i]);
    return;
  }
  if (format.master == kSplit8) {
    const uint16_t* __restrict part = pointer<const uint16_t>(record.param, offset);
    const int8_t* __restrict remainder = pointer<const int8_t>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) weight[i] = join<8>(part[i], remainder[i]);
    return;
  }
  widen(format.param, record.param, offset, count, weight);
  if (format.master == kKahan) {
    float lost[kChunk];
    widen(format.param, record.master, offset, count, lost);
    for (int64_t i = 0; i < count; ++i) weight[i] = compensated(weight[i], lost[i], format.param == kBfloat16);
  } else if (format.master == kMaster32) {
    // a parameter that somebody has changed since counts, not what it was
    const uint16_t* __restrict param = pointer<const uint16_t>(record.param, offset);
    const float* __restrict master = pointer<const float>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t rounded = format.param == kBfloat16 ? to_bfloat16(master[i]) : to_float16(master[i]);
      weight[i] = rounded == param[i] ? master[i] : weight[i];
    }
  }
}

inline void write_weights(const Record& record, const Format& format, int64_t offset, int64_t count,
                          const float* __restrict weight, const uint32_t* __restrict random) {
  uint16_t* __restrict param = pointer<uint16_t>(record.param, offset);
  switch (format.master) {
    case kStochastic:
      if (format.param == kBfloat16) {
        for (int64_t i = 0; i < count; ++i) param[i] = to_bfloat16(weight[i], random[i]);
      } else {
        for (int64_t i = 0; i < count; ++i) param[i] = to_float16(weight[i], random[i]);
      }
      return;
    case kSplit16: {
      int16_t* __restrict remainder = pointer<int16_t>(record.master, offset);
      for (int64_t i = 0; i < count; ++i) {
        const Split found = split<16>(weight[i]);
        param[i] = found.part, remainder[i] = found.remainder;
      }
      return;
    }
    case kSplit8: {
      int8_t* __restrict remainder = pointer<int8_t>(record.master, offset);
      for (int64_t i = 0; i < count; ++i) {
        const Split found = split<8>(weight[i]);
        param[i] = found.part, remainder[i] = static_cast<int8_t>(found.remainder);
      }
      return;
    }
  }
  narrow(format.param, weight, record.param, offset, count);
  if (format.master == kKahan) {
    float stored[kChunk], lost[kChunk];
    widen(format.param, record.param, offset, count, stored);
    for (int64_t i = 0; i < count; ++i) lost[i] = compensation(weight[i], stored[i]);
    narrow(format.param, lost, record.master, offset, count);
  } else if (format.master == kMaster32) {
    float* __restrict master = pointer<float>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) master[i] = weight[i];
  }
}

// Where a moment and, of 8 bits, its scales lie.
struct Moment {
  int64_t address, scales;
};

template <typename CODE>
void decode_blocks(const Moment& moment, int64_t offset, int64_t count, float* __restrict out) {
  const uint8_t* __restrict code = pointer<const uint8_t>(moment.address, offset);
  const uint8_t* __restrict scale = pointer<const uint8_t>(moment.scales, offset / kBlock);
  alignas(64) float scales[kChunk];
  for (int64_t b = 0; b < (count + kBlock - 1) / kBlock; ++b) {
    const float of_block = scale_value(scale[b]);
    for (int i = 0; i < kBlock; ++i) scales[b * kBlock + i] = of_block;
  }
  uint8_t has_special = 0;
  for (int64_t i = 0; i < count; ++i) has_special |= is_special<CODE>(code[i]);
  if (has_special) {
    for (int64_t i = 0; i < count; ++i) out[i] = decode<CODE>(code[i], scales[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = decode_finite<CODE>(code[i], scales[i]);
  }
}

// Sixteen numbers at a time, however many of them the processor takes.
using Sixteen = uint32_t __attribute__((vector_size(64)));

// The maxima of a's and of b's neighbours: a's first.
inline Sixteen pairwise_maxima(const Sixteen& a, const Sixteen& b) {
#if defined(__clang__)
  const Sixteen even = __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const Sixteen odd = __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
  const Sixteen even = __builtin_shuffle(a, b, Sixteen{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30});
  const Sixteen odd = __builtin_shuffle(a, b, Sixteen{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31});
#endif
  return even > odd ? even : odd;
}

// The largest of each row.
SF_HOST_DEVICE Sixteen row_maxima(const Sixteen (&rows)[16]) {
  Sixteen left[8];
  for (int k = 0; k < 8; ++k) left[k] = pairwise_maxima(rows[2 * k], rows[2 * k + 1]);
  for (int count = 4; count; count /= 2) {
    for (int k = 0; k < count; ++k) left[k] = pairwise_maxima(left[2 * k], left[2 * k + 1]);
  }
  return left[0];
}

// The largest of each of the sixteen blocks of a chunk, of 32 numbers each.
inline Sixteen block_maxima(const uint32_t* numbers) {
  static_assert(kChunk == 16 * kBlock && kBlock == 32);
  Sixteen rows[16];
  for (int b = 0; b < 16; ++b) {
    Sixteen first, second;
    std::memcpy(&first, numbers + b * kBlock, sizeof first);
    std::memcpy(&second, numbers + b * kBlock + 16, sizeof second);
    rows[b] = first > second ? first : second;
  }
  return row_maxima(rows);
}

// In several passes, each of them one that compilers vectorise.
template <typename CODE>
void encode_blocks(const float* __restrict in, const uint32_t* __restrict random, const Moment& moment, int64_t offset,
                   int64_t count) {
  alignas(64) uint32_t magnitude[kChunk], largest[16];
  for (int64_t i = 0; i < count; ++i) magnitude[i] = bits_of(in[i]) & kMagnitude;
  for (int64_t i = count; i < kChunk; ++i) magnitude[i] = 0;
  const Sixteen maxima = block_maxima(magnitude);
  std::memcpy(largest, &maxima, sizeof largest);
  uint32_t most = 0;
  for (int b = 0; b < 16; ++b) most = most > largest[b] ? most : largest[b];
  const bool is_usual = most < kLargestScaled;
  if (!is_usual) {
    for (int64_t i = 0; i < count; ++i) magnitude[i] = finite_magnitude(in[i]);
    const Sixteen finite = block_maxima(magnitude);
    std::memcpy(largest, &finite, sizeof largest);
  }
  uint8_t* __restrict code = pointer<uint8_t>(moment.address, offset);
  uint8_t* __restrict scale = pointer<uint8_t>(moment.scales, offset / kBlock);
  alignas(64) float inverse[kChunk];
  for (int64_t b = 0; b < (count + kBlock - 1) / kBlock; ++b) {
    scale[b] = scale_of(largest[b]);
    const float factor = inverse_scale(scale[b]);
    for (int i = 0; i < kBlock; ++i) inverse[b * kBlock + i] = factor;
  }
  if (is_usual) {
    for (int64_t i = 0; i < count; ++i)
      code[i] = static_cast<uint8_t>(encode_finite<CODE>(in[i], inverse[i], random[i]));
  } else {
    for (int64_t i = 0; i < count; ++i) code[i] = static_cast<uint8_t>(encode<CODE>(in[i], inverse[i], random[i]));
  }
}

// Calls with the code of each moment that a rule has, where it lies, and its number.
template <typename Function>
void for_each_moment(const Record& record, int32_t rule, Function&& function) {
  const bool is_adam = !(rule & kSgd);
  if (is_adam || rule & kMomentum) function(FirstMoment{}, Moment{record.exp_avg, record.exp_avg_scale}, 0);
  if (is_adam) function(SecondMoment{}, Moment{record.exp_avg_sq, record.exp_avg_sq_scale}, 1);
  if (is_adam && rule & kAmsgrad)
    function(SecondMoment{}, Moment{record.max_exp_avg_sq, record.max_exp_avg_sq_scale}, 2);
}

// Of moments that are not float32; `offset` is a multiple of kBlock.
template <typename CODE>
void read_moments(int32_t kind, const Moment& moment, int64_t offset, int64_t count, float* out) {
  if (kind == kState8) {
    decode_blocks<CODE>(moment, offset, count, out);
  } else {
    widen(kBfloat16, moment.address, offset, count, out);
  }
}

template <typename CODE>
void write_moments(int32_t kind, const float* __restrict in, const uint32_t* __restrict random, const Moment& moment,
                   int64_t offset, int64_t count) {
  if (kind == kState8) {
    encode_blocks<CODE>(in, random, moment, offset, count);
  } else {
    uint16_t* __restrict out = pointer<uint16_t>(moment.address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = to_bfloat16(in[i], random[i]);
  }
}

}  // namespace
}  // namespace sf
