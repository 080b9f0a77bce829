// Full tiles of schemes that the kernel knows when it is compiled, so that nothing branches on a format.
//
// A thread takes as many neighbouring elements at once as make the narrowest of their buffers one access of 128 bits:
// 16 where there are codes or 8-bit remainders, else 8. All that it reads of them is in flight before anything is
// computed: 96 bytes (80 for bfloat16 throughout, 112 with remainders), with three blocks of 256 threads to a
// multiprocessor 60 to 84 KiB. Three blocks rather than two, because one
// has nothing in flight while it looks up its record; that leaves a thread 80 registers, which is what 16 elements take
// whose moments wait for the largest of their block.
#pragma once

#include "cuda/access.cuh"
#include "cuda/block.cuh"
#include "cuda/stored.cuh"
#include "format.h"
#include "random_bits.h"
#include "update_rule.h"

namespace sf {

// Those that have a path of their own: parameter and gradient, state, master; for Adam and AdamW, without AMSGrad and
// averages. Anything else takes the path that branches.
#define SF_FOR_EACH_SCHEME(X)         \
  X(kFloat32, kState16, kNoMaster)    \
  X(kBfloat16, kState32, kStochastic) \
  X(kBfloat16, kState32, kSplit16)    \
  X(kBfloat16, kState16, kKahan)      \
  X(kBfloat16, kState8, kNoMaster)    \
  X(kBfloat16, kState8, kStochastic)  \
  X(kBfloat16, kState8, kSplit8)

constexpr int32_t kNoScheme = -1;

// Of a record whose full tiles may have such a path, the scheme, else kNoScheme.
__device__ __forceinline__ int32_t scheme_of(const Record& r) {
  const int64_t addresses = r.param | r.grad | r.exp_avg | r.exp_avg_sq | r.master;
  const bool is_plain = r.grad && r.exp_avg_sq && !r.max_exp_avg_sq && !r.ema && !r.grad_sum;
  const bool is_usual = is_plain && r.grad_dtype == format_of(r.format).param && (addresses & 15) == 0;
  return is_usual ? static_cast<int32_t>(r.format) : kNoScheme;
}

template <int PARAM, int STATE, int MASTER>
struct Scheme {
  static constexpr int32_t word = PARAM | STATE << 2 | MASTER << 4;  // of a record's format
  static constexpr int param = PARAM, state = STATE, master = MASTER;
  static constexpr int param_bytes = PARAM == kFloat32 ? 4 : 2;
  static constexpr int state_bytes = STATE == kState32 ? 4 : STATE == kState16 ? 2 : 1;
  static constexpr int master_bytes = MASTER == kSplit8 ? 1 : MASTER == kKahan || MASTER == kSplit16 ? 2 : 0;
  static constexpr int elements = state_bytes == 1 || master_bytes == 1 ? 16 : 8;
};

// The elements of a thread, as they are stored.
template <typename S>
struct Held {
  Words<S::elements * S::param_bytes> param, grad;
  Words<S::elements * S::state_bytes> exp_avg, exp_avg_sq;
  Words<S::elements*(S::master_bytes ? S::master_bytes : 1)> master;
  float scale, scale_sq;
};

template <typename S>
__device__ __forceinline__ void load(const Record& record, int64_t i, Held<S>& held) {
  constexpr int V = S::elements;
  held.param = load_words<V * S::param_bytes>(record.param, S::param_bytes * i);
  held.grad = load_words<V * S::param_bytes>(record.grad, S::param_bytes * i);
  held.exp_avg = load_words<V * S::state_bytes>(record.exp_avg, S::state_bytes * i);
  held.exp_avg_sq = load_words<V * S::state_bytes>(record.exp_avg_sq, S::state_bytes * i);
  if constexpr (S::master_bytes) held.master = load_words<V * S::master_bytes>(record.master, S::master_bytes * i);
  if constexpr (S::state == kState8) {
    held.scale = read_scale(record.exp_avg_scale, i);
    held.scale_sq = read_scale(record.exp_avg_sq_scale, i);
  }
}

template <typename S>
__device__ __forceinline__ void store(const Record& record, int64_t i, const Held<S>& held) {
  store_words(record.param, S::param_bytes * i, held.param);
  store_words(record.exp_avg, S::state_bytes * i, held.exp_avg);
  store_words(record.exp_avg_sq, S::state_bytes * i, held.exp_avg_sq);
  if constexpr (S::master_bytes) store_words(record.master, S::master_bytes * i, held.master);
}

template <int BYTES>
__device__ __forceinline__ void put_half(Words<BYTES>& words, int j, uint16_t x) {
  words.word[j / 2] = j % 2 ? words.word[j / 2] | static_cast<uint32_t>(x) << 16 : x;
}

template <int BYTES>
__device__ __forceinline__ void put_byte(Words<BYTES>& words, int j, uint8_t x) {
  words.word[j / 4] = j % 4 ? words.word[j / 4] | static_cast<uint32_t>(x) << (j % 4 * 8) : x;
}

template <typename S>
__device__ __forceinline__ float weight_at(const Held<S>& held, int j) {
  if constexpr (S::master == kSplit16) {
    return join<16>(half_at(held.param, j), static_cast<int16_t>(half_at(held.master, j)));
  } else if constexpr (S::master == kSplit8) {
    return join<8>(half_at(held.param, j), static_cast<int8_t>(byte_at(held.master, j)));
  } else if constexpr (S::param == kFloat32) {
    return float_of(held.param.word[j]);
  } else {
    const float stored = from_bfloat16(half_at(held.param, j));
    return S::master == kKahan ? compensated(stored, from_bfloat16(half_at(held.master, j)), true) : stored;
  }
}

template <typename S>
__device__ __forceinline__ void put_weight(Held<S>& held, int j, float weight, uint32_t random) {
  if constexpr (S::master == kSplit16) {
    const Split parts = split<16>(weight);
    put_half(held.param, j, parts.part), put_half(held.master, j, parts.remainder);
  } else if constexpr (S::master == kSplit8) {
    const Split parts = split<8>(weight);
    put_half(held.param, j, parts.part), put_byte(held.master, j, parts.remainder);
  } else if constexpr (S::param == kFloat32) {
    held.param.word[j] = bits_of(weight);
  } else {
    const uint16_t stored = S::master == kStochastic ? to_bfloat16(weight, random) : to_bfloat16(weight);
    put_half(held.param, j, stored);
    if constexpr (S::master == kKahan) {
      put_half(held.master, j, to_bfloat16(compensation(weight, from_bfloat16(stored))));
    }
  }
}

template <typename CODE, typename S, int BYTES>
__device__ __forceinline__ float moment_at(const Words<BYTES>& words, float scale, int j) {
  if constexpr (S::state == kState32) return float_of(words.word[j]);
  if constexpr (S::state == kState16) return from_bfloat16(half_at(words, j));
  return decode_usual<CODE>(byte_at(words, j), scale);
}

template <typename S, int BYTES>
__device__ __forceinline__ void put_moment(Words<BYTES>& words, int j, float moment, uint32_t random) {
  if constexpr (S::state == kState32) {
    words.word[j] = bits_of(moment);
  } else {
    put_half(words, j, to_bfloat16(moment, random));
  }
}

// Over a block, of which two threads have half each.
__device__ __forceinline__ uint32_t largest_of_block(float largest) {
  const uint32_t mine = bits_of(largest), other = __shfl_xor_sync(0xffffffffu, mine, 1);
  return mine > other ? mine : other;
}

// Four codes from the j-th on.
template <typename CODE, int V>
__device__ __forceinline__ void put_codes(Words<V>& words, int j, const float (&x)[V], float inverse,
                                          const uint32_t (&random)[4]) {
  uint32_t codes[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) codes[k] = encode_usual<CODE>(x[j + k], inverse, random[k]);
  words.word[j / 4] = top_bytes(codes);
}

template <typename S>
constexpr int kPasses = kTileElements / (kNarrowThreads * S::elements);

// A warp leaves its elements as they were if it cannot update them: it must not have updated others before, and they
// must be those that the path that branches gives the same warp.
template <typename S>
constexpr bool is_whole = S::state != kState8 || (kPasses<S> == 1 && kWarp * S::elements == kElementsOfWarp);

// Whether the elements are updated; if not, nothing is, of the whole warp. Of codes nothing is stored before it is
// known that all of them are ordinary (csrc/codec.h), so that the path that branches can still begin from what there
// was.
template <typename S, int RULE>
__device__ __forceinline__ bool update_held(const Tiled& at, int64_t i, const Held<S>& held) {
  constexpr int V = S::elements;
  Held<S> updated;
  float m[V], v[V], none = 0;
  float largest = 0, largest_sq = 0;
  if constexpr (S::state == kState8) {
    static_assert(2 * V == kBlock);
    largest = special_codes<FirstMoment>(held.exp_avg.word) ? float_of(kMagnitude) : 0.0f;
    largest_sq = special_codes<SecondMoment>(held.exp_avg_sq.word) ? float_of(kMagnitude) : 0.0f;
  }
  auto first = static_cast<uint32_t>(i - at.tile.offset);
  const auto draw = [&](int j) { return random_bits(at.stream, first + j); };
#pragma unroll
  for (int j = 0; j < V; ++j) {
    float p = weight_at(held, j);
    const float g = S::param == kFloat32 ? float_of(held.grad.word[j]) : from_bfloat16(half_at(held.grad, j));
    m[j] = moment_at<FirstMoment, S>(held.exp_avg, held.scale, j);
    v[j] = moment_at<SecondMoment, S>(held.exp_avg_sq, held.scale_sq, j);
    update_element<RULE>(at.row, p, g, m[j], v[j], none, none);
    const uint32_t random = S::master == kStochastic || S::state == kState16 ? draw(j) : 0;
    put_weight(updated, j, p, random);
    if constexpr (S::state != kState8) {
      put_moment<S>(updated.exp_avg, j, m[j], random);
      put_moment<S>(updated.exp_avg_sq, j, v[j], random);
    } else {
      largest = larger_or_nan(largest, m[j]);
      largest_sq = larger_or_nan(largest_sq, v[j]);
    }
  }
  if constexpr (S::state == kState8) {
    const uint32_t top = largest_of_block(largest), top_sq = largest_of_block(largest_sq);
    if (__any_sync(0xffffffffu, (top > top_sq ? top : top_sq) > kLargestScaled)) return false;
    // drawn again: held since the weights were rounded, the numbers would be too many for the registers
    asm volatile("" : "+r"(first));
    const uint8_t scale = scale_of(top), scale_sq = scale_of(top_sq);
    if (i % kBlock == 0) {
      store_words(at.record.exp_avg_scale, i / kBlock, Words<1>{{scale}});
      store_words(at.record.exp_avg_sq_scale, i / kBlock, Words<1>{{scale_sq}});
    }
#pragma unroll
    for (int j = 0; j < V; j += 4) {
      uint32_t random[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) random[k] = draw(j + k);
      put_codes<FirstMoment>(updated.exp_avg, j, m, inverse_scale(scale), random);
      put_codes<SecondMoment>(updated.exp_avg_sq, j, v, inverse_scale(scale_sq), random);
    }
  }
  store(at.record, i, updated);
  return true;
}

template <typename S, int RULE>
__device__ __forceinline__ bool update_all(const Tiled& at, int64_t i, Held<S>& held) {
  static_assert(is_whole<S>);
  bool all = true;
#pragma unroll
  for (int k = 0; k < kPasses<S>; ++k) {
    if (k) load(at.record, i += kTileElements / kPasses<S>, held);
    all &= update_held<S, RULE>(at, i, held);
  }
  return all;
}

// Waits for the row. False where codes, or what is to become some, are of infinity, NaN or beyond all scales, or the
// rule is another one; then nothing is updated of the warp's 512 elements.
template <typename S>
__device__ __forceinline__ bool update_full_tile(const Tiled& at) {
  const int64_t first = at.tile.offset + S::elements * static_cast<int>(threadIdx.x);
  Held<S> held;
  load(at.record, first, held);
  __syncthreads();
  switch (at.row.rule) {
    case 0:
      return update_all<S, 0>(at, first, held);
    case kL2:
      return update_all<S, kL2>(at, first, held);
    default:
      return false;
  }
}

}  // namespace sf
