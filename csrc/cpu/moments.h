// Reads and writes a chunk of moments: bfloat16, or 8-bit codes with a scale per block. Part of step.cpp, and compiled
// with it for each instruction set.
#pragma once

#include <cstring>

#include "codec.h"
#include "cpu/chunk.h"
#include "tables.h"

namespace sf {
namespace {

// The addresses of a moment and of its scales, if it has 8 bits.
struct Moment {
  int64_t address, scales;
};

// Where a chunk begins: with an element that is the first of a block. `row` is the record's block_row.
struct ChunkStart {
  int64_t element, block, row;
};

// Calls function(block, begin, end) for each block of a chunk of whole rows, all of which end within a block.
template <typename Function>
void for_blocks_of_rows(int64_t row, int64_t count, Function&& function) {
  int64_t block = 0;
  for (int64_t begin = 0; begin < count; begin += row) {
    for (int64_t i = begin; i < begin + row; i += kBlock) {
      function(block++, i, i + kBlock < begin + row ? i + kBlock : begin + row);
    }
  }
}

// True for a chunk of several rows; of one with a part of a row only the last block may not be full.
inline bool has_rows(const ChunkStart& at, int64_t count) { return at.row && at.row < count; }

template <typename CODE>
void decode_blocks(const Moment& moment, const ChunkStart& at, int64_t count, float* __restrict out) {
  const uint8_t* __restrict code = pointer<const uint8_t>(moment.address, at.element);
  const uint8_t* __restrict scale = pointer<const uint8_t>(moment.scales, at.block);
  alignas(64) float scales[kChunk];
  if (has_rows(at, count)) {
    for_blocks_of_rows(at.row, count, [&](int64_t b, int64_t begin, int64_t end) {
      const float of_block = scale_value(scale[b]);
      for (int64_t i = begin; i < end; ++i) scales[i] = of_block;
    });
  } else {
    for (int64_t b = 0; b < (count + kBlock - 1) / kBlock; ++b) {
      const float of_block = scale_value(scale[b]);
      for (int i = 0; i < kBlock; ++i) scales[b * kBlock + i] = of_block;
    }
  }
  uint8_t has_special = 0;
  for (int64_t i = 0; i < count; ++i) has_special |= is_special<CODE>(code[i]);
  if (has_special) {
    for (int64_t i = 0; i < count; ++i) out[i] = decode<CODE>(code[i], scales[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = decode_finite<CODE>(code[i], scales[i]);
  }
}

// Sixteen numbers; the compiler splits them where vectors are shorter.
using Sixteen = uint32_t __attribute__((vector_size(64)));

// The maxima of neighbours in `a`, then in `b`.
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

// The maximum of each of 16 rows.
SF_HOST_DEVICE Sixteen row_maxima(const Sixteen (&rows)[16]) {
  Sixteen left[8];
  for (int k = 0; k < 8; ++k) left[k] = pairwise_maxima(rows[2 * k], rows[2 * k + 1]);
  for (int count = 4; count; count /= 2) {
    for (int k = 0; k < count; ++k) left[k] = pairwise_maxima(left[2 * k], left[2 * k + 1]);
  }
  return left[0];
}

// The maximum of each of the sixteen blocks of a chunk.
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

// Encodes a chunk in several passes, each of which compilers vectorise.
template <typename CODE>
void encode_blocks(const float* __restrict in, const uint32_t* __restrict random, const Moment& moment,
                   const ChunkStart& at, int64_t count) {
  alignas(64) uint32_t magnitude[kChunk], largest[kChunk];
  alignas(64) float inverse[kChunk];
  const bool by_rows = has_rows(at, count);
  const auto find_maxima = [&] {
    if (by_rows) {
      for_blocks_of_rows(at.row, count, [&](int64_t b, int64_t begin, int64_t end) {
        uint32_t most = 0;
        for (int64_t i = begin; i < end; ++i) most = most > magnitude[i] ? most : magnitude[i];
        largest[b] = most;
      });
    } else {
      for (int64_t i = count; i < kChunk; ++i) magnitude[i] = 0;
      const Sixteen maxima = block_maxima(magnitude);
      std::memcpy(largest, &maxima, sizeof maxima);
    }
  };
  uint32_t most = 0;
  for (int64_t i = 0; i < count; ++i) magnitude[i] = bits_of(in[i]) & kMagnitude;
  for (int64_t i = 0; i < count; ++i) most = most > magnitude[i] ? most : magnitude[i];
  const bool in_range = most < kLargestScaled;  // no scale is clamped, and all numbers are finite
  if (!in_range) {
    for (int64_t i = 0; i < count; ++i) magnitude[i] = finite_magnitude(in[i]);
  }
  find_maxima();
  uint8_t* __restrict code = pointer<uint8_t>(moment.address, at.element);
  uint8_t* __restrict scale = pointer<uint8_t>(moment.scales, at.block);
  if (by_rows) {
    for_blocks_of_rows(at.row, count, [&](int64_t b, int64_t begin, int64_t end) {
      scale[b] = scale_of(largest[b]);
      const float factor = inverse_scale(scale[b]);
      for (int64_t i = begin; i < end; ++i) inverse[i] = factor;
    });
  } else {
    for (int64_t b = 0; b < (count + kBlock - 1) / kBlock; ++b) {
      scale[b] = scale_of(largest[b]);
      const float factor = inverse_scale(scale[b]);
      for (int i = 0; i < kBlock; ++i) inverse[b * kBlock + i] = factor;
    }
  }
  if (in_range) {
    for (int64_t i = 0; i < count; ++i) {
      code[i] = static_cast<uint8_t>(encode_finite<CODE>(in[i], inverse[i], random[i]));
    }
  } else {
    for (int64_t i = 0; i < count; ++i) code[i] = static_cast<uint8_t>(encode<CODE>(in[i], inverse[i], random[i]));
  }
}

// Calls function(code, moment, index) for each moment that a rule has.
template <typename Function>
void for_each_moment(const Record& record, int32_t rule, Function&& function) {
  const bool is_adam = !(rule & kSgd);
  if (is_adam || rule & kMomentum) function(FirstMoment{}, Moment{record.exp_avg, record.exp_avg_scale}, 0);
  if (is_adam) function(SecondMoment{}, Moment{record.exp_avg_sq, record.exp_avg_sq_scale}, 1);
  if (is_adam && rule & kAmsgrad)
    function(SecondMoment{}, Moment{record.max_exp_avg_sq, record.max_exp_avg_sq_scale}, 2);
}

// Reads moments that are not float32.
template <typename CODE>
void read_moments(int32_t kind, const Moment& moment, const ChunkStart& at, int64_t count, float* out) {
  if (kind == kState8) {
    decode_blocks<CODE>(moment, at, count, out);
  } else {
    read_floats(kBfloat16, moment.address, at.element, count, out);
  }
}

template <typename CODE>
void write_moments(int32_t kind, const float* __restrict in, const uint32_t* __restrict random, const Moment& moment,
                   const ChunkStart& at, int64_t count) {
  if (kind == kState8) {
    encode_blocks<CODE>(in, random, moment, at, count);
  } else {
    uint16_t* __restrict out = pointer<uint16_t>(moment.address, at.element);
    for (int64_t i = 0; i < count; ++i) out[i] = to_bfloat16(in[i], random[i]);
  }
}

}  // namespace
}  // namespace sf
