// Tiles of parameters that are not float32 with float32 state: a chunk at a time is decoded into arrays of float32,
// updated there as any other, and encoded. Part of kernel.cpp, and compiled with it for each instruction set.
#pragma once

#include "codec.h"
#include "format.h"
#include "random_bits.h"
#include "tables.h"

namespace sf {
namespace {

constexpr int64_t kChunk = 512;
static_assert(kTileElements % kChunk == 0 && kChunk % kBlock == 0);

template <typename T>
T* at(int64_t address, int64_t offset) {
  return reinterpret_cast<T*>(address) + offset;
}

// float32 of `count` elements at an address.
inline void widen(int64_t dtype, int64_t address, int64_t offset, int64_t count, float* __restrict out) {
  if (dtype == kFloat32) {
    const float* __restrict in = at<const float>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = in[i];
  } else if (dtype == kBfloat16) {
    const uint16_t* __restrict in = at<const uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = from_bfloat16(in[i]);
  } else {
    const uint16_t* __restrict in = at<const uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = from_float16(in[i]);
  }
}

inline void narrow(int64_t dtype, const float* __restrict in, int64_t address, int64_t offset, int64_t count) {
  if (dtype == kFloat32) {
    float* __restrict out = at<float>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = in[i];
  } else if (dtype == kBfloat16) {
    uint16_t* __restrict out = at<uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = to_bfloat16(in[i]);
  } else {
    uint16_t* __restrict out = at<uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = to_float16(in[i]);
  }
}

// The weights that parameters, and what is stored beside them, stand for.
inline void read_weights(const Record& record, const Format& format, int64_t offset, int64_t count,
                         float* __restrict weight) {
  if (format.master == kSplit16) {
    const uint16_t* __restrict part = at<const uint16_t>(record.param, offset);
    const int16_t* __restrict remainder = at<const int16_t>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) weight[i] = join<16>(part[i], remainder[i]);
    return;
  }
  if (format.master == kSplit8) {
    const uint16_t* __restrict part = at<const uint16_t>(record.param, offset);
    const int8_t* __restrict remainder = at<const int8_t>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) weight[i] = join<8>(part[i], remainder[i]);
    return;
  }
  widen(format.param, record.param, offset, count, weight);
  if (format.master == kKahan) {
    float lost[kChunk];
    widen(format.param, record.master, offset, count, lost);
    for (int64_t i = 0; i < count; ++i) weight[i] += lost[i];
  } else if (format.master == kMaster32) {
    // a parameter that somebody has changed since counts, not what it was
    const uint16_t* __restrict param = at<const uint16_t>(record.param, offset);
    const float* __restrict master = at<const float>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t rounded = format.param == kBfloat16 ? to_bfloat16(master[i]) : to_float16(master[i]);
      weight[i] = rounded == param[i] ? master[i] : weight[i];
    }
  }
}

inline void write_weights(const Record& record, const Format& format, int64_t offset, int64_t count,
                          const float* __restrict weight, const uint32_t* __restrict random) {
  uint16_t* __restrict param = at<uint16_t>(record.param, offset);
  switch (format.master) {
    case kStochastic:
      if (format.param == kBfloat16) {
        for (int64_t i = 0; i < count; ++i) param[i] = to_bfloat16(weight[i], random[i] >> 16);
      } else {
        for (int64_t i = 0; i < count; ++i) param[i] = to_float16(weight[i], random[i] >> 16);
      }
      return;
    case kSplit16: {
      int16_t* __restrict remainder = at<int16_t>(record.master, offset);
      for (int64_t i = 0; i < count; ++i) {
        const Split found = split<16>(weight[i]);
        param[i] = found.part, remainder[i] = found.remainder;
      }
      return;
    }
    case kSplit8: {
      int8_t* __restrict remainder = at<int8_t>(record.master, offset);
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
    float* __restrict master = at<float>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) master[i] = weight[i];
  }
}

template <typename CODE>
void decode_blocks(int64_t codes, int64_t scales, int64_t offset, int64_t count, float* __restrict out) {
  const uint8_t* __restrict code = at<const uint8_t>(codes, offset);
  const uint8_t* __restrict scale = at<const uint8_t>(scales, offset / kBlock);
  float factor[kChunk];
  for (int64_t b = 0; b < (count + kBlock - 1) / kBlock; ++b) {
    const float of_block = scale_value(scale[b]);
    for (int i = 0; i < kBlock; ++i) factor[b * kBlock + i] = of_block;
  }
  uint8_t has_special = 0;
  for (int64_t i = 0; i < count; ++i) has_special |= is_special<CODE>(code[i]);
  if (has_special) {
    for (int64_t i = 0; i < count; ++i) out[i] = decode<CODE>(code[i], factor[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = decode_finite<CODE>(code[i], factor[i]);
  }
}

// The largest magnitude of a block, of what is finite if so asked.
template <bool FINITE>
uint32_t largest_of(const float* __restrict in, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t magnitude = FINITE ? finite_magnitude(in[i]) : bits_of(in[i]) & kMagnitude;
    largest = largest > magnitude ? largest : magnitude;
  }
  return largest;
}

// In several passes, each of them one that compilers vectorise.
template <typename CODE>
void encode_blocks(const float* __restrict in, const uint32_t* __restrict random, int64_t codes, int64_t scales,
                   int64_t offset, int64_t count) {
  uint8_t* __restrict code = at<uint8_t>(codes, offset);
  uint8_t* __restrict scale = at<uint8_t>(scales, offset / kBlock);
  float inverse[kChunk];
  uint32_t most = 0;
  for (int64_t b = 0, first = 0; first < count; ++b, first += kBlock) {
    const bool is_whole = count - first >= kBlock;
    uint32_t largest = largest_of<false>(in + first, is_whole ? kBlock : count - first);
    most = most > largest ? most : largest;
    if (largest >= kInfinity) largest = largest_of<true>(in + first, is_whole ? kBlock : count - first);
    scale[b] = scale_of(largest);
    const float factor = inverse_scale(scale[b]);
    for (int i = 0; i < kBlock; ++i) inverse[first + i] = factor;
  }
  if (most >= kLargestScaled) {
    for (int64_t i = 0; i < count; ++i)
      code[i] = static_cast<uint8_t>(encode<CODE>(in[i], inverse[i], random[i] & 0xFFFF));
  } else {
    for (int64_t i = 0; i < count; ++i)
      code[i] = static_cast<uint8_t>(encode_finite<CODE>(in[i], inverse[i], random[i] & 0xFFFF));
  }
}

// Where a moment and, of 8 bits, its scales lie.
struct Moment {
  int64_t address, scales;
};

// Calls with the code of each moment that a rule has, where it lies, and its number.
template <typename Function>
void for_each_moment(const Record& record, int32_t rule, Function&& function) {
  const bool is_adam = !(rule & kSgd);
  if (is_adam || rule & kMomentum) function(FirstMoment{}, Moment{record.exp_avg, record.exp_avg_scale}, 0);
  if (is_adam) function(SecondMoment{}, Moment{record.exp_avg_sq, record.exp_avg_sq_scale}, 1);
  if (is_adam && rule & kAmsgrad)
    function(SecondMoment{}, Moment{record.max_exp_avg_sq, record.max_exp_avg_sq_scale}, 2);
}

// `offset` is a multiple of kBlock.
template <typename CODE>
void read_moments(int32_t kind, const Moment& moment, int64_t offset, int64_t count, float* out) {
  if (kind == kState8) {
    decode_blocks<CODE>(moment.address, moment.scales, offset, count, out);
  } else {
    widen(kind == kState16 ? kBfloat16 : kFloat32, moment.address, offset, count, out);
  }
}

template <typename CODE>
void write_moments(int32_t kind, const float* __restrict in, const uint32_t* __restrict random, const Moment& moment,
                   int64_t offset, int64_t count) {
  if (kind == kState8) {
    encode_blocks<CODE>(in, random, moment.address, moment.scales, offset, count);
  } else if (kind == kState16) {
    uint16_t* __restrict out = at<uint16_t>(moment.address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = to_bfloat16(in[i], random[i] & 0xFFFF);
  } else {
    narrow(kFloat32, in, moment.address, offset, count);
  }
}

}  // namespace
}  // namespace sf
