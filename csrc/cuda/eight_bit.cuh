// Adam on full tiles of bfloat16 with 8-bit moments. These schemes move the fewest bytes, 10.125 and 12.125 per
// parameter, so that the number of instructions sets the time; tests/csrc/test_machine_code.py counts them.
//
// A thread updates 16 consecutive elements, half of a block that shares its scales. It saves instructions in three
// ways: it checks the range of all its numbers at once, so that codes, roots and quotients need no checks of their own
// (in_range_math.cuh); two neighbours share a random word; and bytes are packed by permutation.
#pragma once

#include "cuda/access.cuh"
#include "cuda/block.cuh"
#include "cuda/in_range_math.cuh"
#include "cuda/ptx.cuh"
#include "cuda/scheme_registers.cuh"
#include "random_bits.h"
#include "update_rule.h"

namespace sf {

// Bytes A and B of `first`, then of `second`.
template <int A, int B>
__device__ __forceinline__ uint32_t pick_two_bytes(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, A | B << 4 | (4 + A) << 8 | (4 + B) << 12);
}

// Byte BYTE of four words.
template <int BYTE>
__device__ __forceinline__ uint32_t pick_byte(const uint32_t (&x)[4]) {
  constexpr uint32_t both = BYTE | (4 + BYTE) << 4;
  return __byte_perm(__byte_perm(x[0], x[1], both), __byte_perm(x[2], x[3], both << 8), 0x7610);
}

// The extreme values of a thread's elements, which tell whether all of them are in range.
struct Extremes {
  float largest = 0;               // magnitude of the first moments; NaN if one is NaN
  uint32_t largest_sq = 0;         // bits of the second moments, none of which is negative
  uint32_t smallest = 0xFFFFFFFF;  // of (bits of a first moment) * 2 - 1; a zero wraps around and does not count
  float products = 0;              // sum of products of weights: not finite if a weight is not, or is very large
};

__device__ __forceinline__ bool all_in_range(const Extremes& of, float eps) {
  return of.largest <= InRange::kLargest && of.largest_sq <= bits_of(InRange::kLargestSecond) &&
         of.smallest >= bits_of(InRange::kSmallest) * 2 - 1 && fabsf(of.products) < INFINITY &&
         eps <= InRange::kLargestEps;
}

// Weights and gradients of four elements from the j-th on. The weight is NaN where a zero has a negative remainder:
// then join() in csrc/codec.h has to ignore the remainder.
template <typename S>
__device__ __forceinline__ void read_four(const SchemeRegisters<S>& loaded, int j, float (&p)[4], float (&g)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t param = loaded.param.word[(j + k) / 2], grad = loaded.grad.word[(j + k) / 2];
    uint32_t weight = k % 2 ? param & 0xFFFF0000 : param << 16;
    if constexpr (S::master == kSplit8) weight += signed_byte_shifted(loaded.master.word[j / 4], k);
    p[k] = float_of(weight);
    g[k] = float_of(k % 2 ? grad & 0xFFFF0000 : grad << 16);
  }
}

template <typename S>
__device__ __forceinline__ void write_four(SchemeRegisters<S>& updated, int j, const float (&p)[4],
                                           const uint32_t (&random)[2]) {
  uint32_t whole[4], rounded[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    whole[k] = bits_of(p[k]);
    if constexpr (S::master == kSplit8) {
      whole[k] += 0x80;
      rounded[k] = whole[k] + 0x8000;
    } else if constexpr (S::master == kStochastic) {
      rounded[k] = whole[k] + (k % 2 ? random[k / 2] >> 16 : random[k / 2] & 0xFFFF);
    } else {
      rounded[k] = whole[k] + 0x7FFF + (whole[k] >> 16 & 1);
    }
  }
  updated.param.word[j / 2] = pick_two_bytes<2, 3>(rounded[0], rounded[1]);
  updated.param.word[j / 2 + 1] = pick_two_bytes<2, 3>(rounded[2], rounded[3]);
  if constexpr (S::master == kSplit8) updated.master.word[j / 4] = pick_byte<1>(whole);
}

// The maximum over a block, half of which is another thread's.
__device__ __forceinline__ uint32_t max_of_block(uint32_t mine) {
  const uint32_t other = __shfl_xor_sync(0xffffffffu, mine, 1);
  return mine > other ? mine : other;
}

// The codes of four moments from the j-th on.
template <typename CODE, int V>
__device__ __forceinline__ uint32_t encode_four(const float (&x)[V], int j, float factor,
                                                const uint32_t (&random)[V / 2]) {
  uint32_t codes[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t shifted = __byte_perm(random[(j + k) / 2], 0, k % 2 ? 0x4324 : 0x4104);
    codes[k] = encode_in_range<CODE>(x[j + k], factor, shifted);
  }
  return pick_byte<3>(codes);
}

// Updates the elements of a warp. If some of them are out of range it returns false to the whole warp, and has stored
// nothing, so that the general path can update them from their old values.
template <typename S, int RULE>
__device__ __forceinline__ bool update_eight_bit(const BlockState& block, int64_t i, const SchemeRegisters<S>& loaded) {
  constexpr int V = S::elements;
  static_assert(2 * V == kBlock);
  SchemeRegisters<S> updated;
  Extremes extremes;
  float m[V], v[V], none = 0;
  uint32_t random[V / 2] = {};
  const Row& row = block.row;
  int has_box = row.low > -INFINITY || row.high < INFINITY;
  const auto pair = static_cast<uint32_t>(i - block.tile.offset) / 2;
  const float decoding_m = decode_factor<FirstMoment>(loaded.scale),
              decoding_v = decode_factor<SecondMoment>(loaded.scale_sq);
#pragma unroll
  for (int j = 0; j < V; j += 4) {
    float p[4], g[4];
    read_four(loaded, j, p, g);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      m[j + k] = decode_in_range<FirstMoment>(loaded.exp_avg.word[j / 4], k, decoding_m);
      v[j + k] = decode_in_range<SecondMoment>(loaded.exp_avg_sq.word[j / 4], k, decoding_v);
      adam_update<RULE, InRange>(row, p[k], g[k], m[j + k], v[j + k], none);
      extremes.largest = max_magnitude_or_nan(extremes.largest, m[j + k]);
      extremes.largest_sq = extremes.largest_sq > bits_of(v[j + k]) ? extremes.largest_sq : bits_of(v[j + k]);
      const uint32_t above_zero = bits_of(m[j + k]) * 2 - 1;
      extremes.smallest = extremes.smallest < above_zero ? extremes.smallest : above_zero;
    }
    ptx::forget_value(has_box);
    if (has_box) {
#pragma unroll
      for (int k = 0; k < 4; ++k) p[k] = project(row, p[k]);
    }
    extremes.products = fused_multiply_add(p[0], p[1], fused_multiply_add(p[2], p[3], extremes.products));
    random[j / 2] = random_word(block.random.streams[0], pair + j / 2),
               random[j / 2 + 1] = random_word(block.random.streams[0], pair + j / 2 + 1);
    write_four(updated, j, p, {random[j / 2], random[j / 2 + 1]});
  }
  const bool has_special = special_bytes_of_all<FirstMoment>(loaded.exp_avg.word) |
                           special_bytes_of_all<SecondMoment>(loaded.exp_avg_sq.word);
  if (__any_sync(0xffffffffu, has_special || !all_in_range(extremes, row.eps))) return false;
  const uint8_t scale = scale_of(max_of_block(bits_of(extremes.largest)));
  const uint8_t scale_sq = scale_of(max_of_block(extremes.largest_sq));
  // the old scales were loaded before a barrier, see update_full_tile()
  if (i % kBlock == 0) {
    store_words(block.record.exp_avg_scale, i / kBlock, Words<1>{{scale}});
    store_words(block.record.exp_avg_sq_scale, i / kBlock, Words<1>{{scale_sq}});
  }
  uint32_t zeros = 0;
#pragma unroll
  for (int j = 0; j < V; j += 4) {
    updated.exp_avg.word[j / 4] = encode_four<FirstMoment>(m, j, encode_factor<FirstMoment>(scale), random);
    const uint32_t codes = encode_four<SecondMoment>(v, j, encode_factor<SecondMoment>(scale_sq), random);
    zeros |= (codes - 0x01010101) & ~codes;
    updated.exp_avg_sq.word[j / 4] = codes;
  }
  if (zeros & 0x80808080) {
    // no positive second moment becomes zero
#pragma unroll
    for (int j = 0; j < V; ++j) {
      uint32_t& codes = updated.exp_avg_sq.word[j / 4];
      const uint32_t byte = 0xFFu << j % 4 * 8;
      if (v[j] != 0 && (codes & byte) == 0) codes |= byte & 0x01010101;
    }
  }
  store_registers(block.record, i, updated);
  return true;
}

}  // namespace sf
