// Full tiles of bfloat16 with 8-bit moments for Adam: the formats of the fewest bytes, 10.125 and 12.125 per parameter,
// so that instructions are what counts. A thread has 16 neighbours, half of a block that shares its scales. What codes,
// roots and quotients ask about each number is asked once about all (in_range_math.cuh), two neighbours take their
// random numbers of one word, and what is packed is packed by permuting bytes. tests/csrc/test_machine_code.py counts.
#pragma once

#include "cuda/access.cuh"
#include "cuda/block.cuh"
#include "cuda/in_range_math.cuh"
#include "cuda/scheme_registers.cuh"
#include "random_bits.h"
#include "update_rule.h"

namespace sf {

// Bytes `a` and `b` of two words each.
template <int A, int B>
__device__ __forceinline__ uint32_t two_bytes_each(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, A | B << 4 | (4 + A) << 8 | (4 + B) << 12);
}

// Byte BYTE of four words.
template <int BYTE>
__device__ __forceinline__ uint32_t a_byte_each(const uint32_t (&x)[4]) {
  constexpr uint32_t both = BYTE | (4 + BYTE) << 4;
  return __byte_perm(__byte_perm(x[0], x[1], both), __byte_perm(x[2], x[3], both << 8), 0x7610);
}

// What tells whether all of a thread's elements are usual.
struct Findings {
  float largest = 0;               // first moment; of what is not a number, that
  uint32_t largest_sq = 0;         // bits of second moments, of which none is negative
  uint32_t smallest = 0xFFFFFFFF;  // bits of first moments that are not zero, times 2, less 1
  float products = 0;              // of weights: not finite if one of them is not, or if they are out of all proportion
};

__device__ __forceinline__ bool are_usual(const Findings& of, float eps) {
  return of.largest <= Usual::kLargest && of.largest_sq <= bits_of(Usual::kLargestSecond) &&
         of.smallest >= bits_of(Usual::kSmallest) * 2 - 1 && fabsf(of.products) < INFINITY && eps <= Usual::kLargestEps;
}

// The weights of four elements from the j-th on; NaN where a zero is beside a negative remainder (csrc/codec.h).
template <typename S>
__device__ __forceinline__ void read_four(const Held<S>& held, int j, float (&p)[4], float (&g)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t param = held.param.word[(j + k) / 2], grad = held.grad.word[(j + k) / 2];
    uint32_t weight = k % 2 ? param & 0xFFFF0000 : param << 16;
    if constexpr (S::master == kSplit8) weight += signed_byte_above(held.master.word[j / 4], k);
    p[k] = float_of(weight);
    g[k] = float_of(k % 2 ? grad & 0xFFFF0000 : grad << 16);
  }
}

template <typename S>
__device__ __forceinline__ void write_four(Held<S>& held, int j, const float (&p)[4], const uint32_t (&random)[2]) {
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
  held.param.word[j / 2] = two_bytes_each<2, 3>(rounded[0], rounded[1]);
  held.param.word[j / 2 + 1] = two_bytes_each<2, 3>(rounded[2], rounded[3]);
  if constexpr (S::master == kSplit8) held.master.word[j / 4] = a_byte_each<1>(whole);
}

// Over a block, of which two threads have half each.
__device__ __forceinline__ uint32_t largest_of_block(uint32_t mine) {
  const uint32_t other = __shfl_xor_sync(0xffffffffu, mine, 1);
  return mine > other ? mine : other;
}

// Codes of four moments from the j-th on.
template <typename CODE, int V>
__device__ __forceinline__ uint32_t four_codes(const float (&x)[V], int j, float by, const uint32_t (&random)[V / 2]) {
  uint32_t codes[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t shifted = __byte_perm(random[(j + k) / 2], 0, k % 2 ? 0x4324 : 0x4104);
    codes[k] = encode_usual<CODE>(x[j + k], by, shifted);
  }
  return a_byte_each<3>(codes);
}

// Whether the elements are updated; if not, nothing is, of the whole warp. Nothing is stored before it is known that
// all of them are usual, so that the path that branches can still begin from what there was.
template <typename S, int RULE>
__device__ __forceinline__ bool update_codes(const BlockState& at, int64_t i, const Held<S>& held) {
  constexpr int V = S::elements;
  static_assert(2 * V == kBlock);
  Held<S> updated;
  Findings found;
  float m[V], v[V], none = 0;
  uint32_t random[V / 2] = {};
  const Row& row = at.row;
  int has_box = row.low > -INFINITY || row.high < INFINITY;
  const auto pair = static_cast<uint32_t>(i - at.tile.offset) / 2;
  const float decoding_m = decoding<FirstMoment>(held.scale), decoding_v = decoding<SecondMoment>(held.scale_sq);
#pragma unroll
  for (int j = 0; j < V; j += 4) {
    float p[4], g[4];
    read_four(held, j, p, g);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      m[j + k] = decode_usual<FirstMoment>(held.exp_avg.word[j / 4], k, decoding_m);
      v[j + k] = decode_usual<SecondMoment>(held.exp_avg_sq.word[j / 4], k, decoding_v);
      adam_update<RULE, Usual>(row, p[k], g[k], m[j + k], v[j + k], none);
      found.largest = larger_or_nan(found.largest, m[j + k]);
      found.largest_sq = found.largest_sq > bits_of(v[j + k]) ? found.largest_sq : bits_of(v[j + k]);
      const uint32_t above_zero = bits_of(m[j + k]) * 2 - 1;
      found.smallest = found.smallest < above_zero ? found.smallest : above_zero;
    }
    asm volatile("" : "+r"(has_box));  // or the compiler would make all of this twice, with and without
    if (has_box) {
#pragma unroll
      for (int k = 0; k < 4; ++k) p[k] = project(row, p[k]);
    }
    found.products = fused_multiply_add(p[0], p[1], fused_multiply_add(p[2], p[3], found.products));
    random[j / 2] = random_word(at.stream, pair + j / 2), random[j / 2 + 1] = random_word(at.stream, pair + j / 2 + 1);
    write_four(updated, j, p, {random[j / 2], random[j / 2 + 1]});
  }
  const bool has_special =
      special_codes<FirstMoment>(held.exp_avg.word) | special_codes<SecondMoment>(held.exp_avg_sq.word);
  if (__any_sync(0xffffffffu, has_special || !are_usual(found, row.eps))) return false;
  const uint8_t scale = scale_of(largest_of_block(bits_of(found.largest)));
  const uint8_t scale_sq = scale_of(largest_of_block(found.largest_sq));
  if (i % kBlock == 0) {
    store_words(at.record.exp_avg_scale, i / kBlock, Words<1>{{scale}});
    store_words(at.record.exp_avg_sq_scale, i / kBlock, Words<1>{{scale_sq}});
  }
  uint32_t zeros = 0;
#pragma unroll
  for (int j = 0; j < V; j += 4) {
    updated.exp_avg.word[j / 4] = four_codes<FirstMoment>(m, j, encoding<FirstMoment>(scale), random);
    const uint32_t codes = four_codes<SecondMoment>(v, j, encoding<SecondMoment>(scale_sq), random);
    zeros |= (codes - 0x01010101) & ~codes;
    updated.exp_avg_sq.word[j / 4] = codes;
  }
  if (zeros & 0x80808080) {
    // no positive one becomes zero
#pragma unroll
    for (int j = 0; j < V; ++j) {
      uint32_t& codes = updated.exp_avg_sq.word[j / 4];
      const uint32_t byte = 0xFFu << j % 4 * 8;
      if (v[j] != 0 && (codes & byte) == 0) codes |= byte & 0x01010101;
    }
  }
  store(at.record, i, updated);
  return true;
}

}  // namespace sf
