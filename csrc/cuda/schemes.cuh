// Full tiles of schemes that the kernel knows when it is compiled, so that nothing branches on a format.
//
// A thread takes as many neighbouring elements at once as make the narrowest of their buffers one access of 128 bits:
// 16 where there are codes or 8-bit remainders, else 8. All that it reads of them is in flight before anything is
// computed: 96 bytes (80 for bfloat16 throughout, 112 with remainders), with three blocks of 256 threads to a
// multiprocessor 60 to 84 KiB. Three blocks rather than two, because one has nothing in flight while it looks up its
// record; that leaves a thread 80 registers, which is what 16 elements take whose moments wait for the largest of their
// block.
#pragma once

#include "cuda/access.cuh"
#include "cuda/block.cuh"
#include "cuda/eight_bit.cuh"
#include "cuda/load_store.cuh"
#include "cuda/scheme_registers.cuh"
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

template <typename S>
__device__ __forceinline__ float weight_at(const Held<S>& held, int j) {
  if constexpr (S::master == kSplit16) {
    return join<16>(half_at(held.param, j), static_cast<int16_t>(half_at(held.master, j)));
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

template <typename S, int BYTES>
__device__ __forceinline__ float moment_at(const Words<BYTES>& words, int j) {
  static_assert(S::state != kState8);
  return S::state == kState32 ? float_of(words.word[j]) : from_bfloat16(half_at(words, j));
}

template <typename S, int BYTES>
__device__ __forceinline__ void put_moment(Words<BYTES>& words, int j, float moment, uint32_t random) {
  if constexpr (S::state == kState32) {
    words.word[j] = bits_of(moment);
  } else {
    put_half(words, j, to_bfloat16(moment, random));
  }
}

template <typename S>
constexpr int kPasses = kTileElements / (kLowPrecisionThreads * S::elements);

// A warp leaves its elements as they were if it cannot update them: it must not have updated others before, and they
// must be those that the path that branches gives the same warp.
template <typename S>
constexpr bool is_whole = S::state != kState8 || (kPasses<S> == 1 && kWarp * S::elements == kElementsOfWarp);

template <typename S, int RULE>
__device__ __forceinline__ void update_numbers(const BlockState& at, int64_t i, const Held<S>& held) {
  Held<S> updated;
  float none = 0;
#pragma unroll
  for (int j = 0; j < S::elements; ++j) {
    float p = weight_at(held, j), m = moment_at<S>(held.exp_avg, j), v = moment_at<S>(held.exp_avg_sq, j);
    const float g = S::param == kFloat32 ? float_of(held.grad.word[j]) : from_bfloat16(half_at(held.grad, j));
    update_element<RULE>(at.row, p, g, m, v, none, none);
    const uint32_t random = random_of(at, i, j, true);
    put_weight(updated, j, p, random);
    put_moment<S>(updated.exp_avg, j, m, random);
    put_moment<S>(updated.exp_avg_sq, j, v, random);
  }
  store(at.record, i, updated);
}

template <typename S, int RULE>
__device__ __forceinline__ bool update_all(const BlockState& at, int64_t i, Held<S>& held) {
  static_assert(is_whole<S>);
  bool all = true;
#pragma unroll
  for (int k = 0; k < kPasses<S>; ++k) {
    if (k) load(at.record, i += kTileElements / kPasses<S>, held);
    if constexpr (S::state == kState8) {
      all &= update_codes<S, RULE>(at, i, held);
    } else {
      update_numbers<S, RULE>(at, i, held);
    }
  }
  return all;
}

// Waits for the row. False where the rule is another one, or an element of 8 bits is not usual (cuda/eight_bit.cuh);
// then nothing is updated of the warp's 512 elements.
template <typename S>
__device__ __forceinline__ bool update_full_tile(const BlockState& at) {
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
