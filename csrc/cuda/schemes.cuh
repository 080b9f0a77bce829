// Updates full tiles of the most common schemes by code that is compiled for each scheme and does not branch on
// formats.
//
// A thread updates 16 consecutive elements at once where there are codes or 8-bit remainders, else 8, so that even the
// buffer with the smallest elements is read by 128-bit accesses. All of its loads are in flight before the first use:
// 96 bytes per thread (80 where everything is bfloat16, 112 with remainders), which makes 60 to 84 KiB per
// multiprocessor with three blocks of 256 threads. There are three blocks and not two because a block has nothing in
// flight while it looks up its record. That leaves 80 registers per thread: just enough for 16 elements whose moments
// have to wait for the maximum of their block.
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

// The schemes with a path of their own, for Adam and AdamW without AMSGrad and averages: dtype of parameter and
// gradient, state, master. All others take the general path of low_precision.cu.
#define SF_FOR_EACH_SCHEME(X)         \
  X(kFloat32, kState16, kNoMaster)    \
  X(kBfloat16, kState32, kStochastic) \
  X(kBfloat16, kState32, kSplit16)    \
  X(kBfloat16, kState16, kKahan)      \
  X(kBfloat16, kState8, kNoMaster)    \
  X(kBfloat16, kState8, kStochastic)  \
  X(kBfloat16, kState8, kSplit8)

constexpr int32_t kNoScheme = -1;

// The format of a record whose full tiles may take such a path, else kNoScheme.
__device__ __forceinline__ int32_t scheme_of(const Record& r) {
  const int64_t addresses = r.param | r.grad | r.exp_avg | r.exp_avg_sq | r.master;
  const bool is_plain = r.grad && r.exp_avg_sq && !r.max_exp_avg_sq && !r.ema && !r.grad_sum;
  const bool is_eligible = is_plain && r.grad_dtype == format_of(r.format).param && (addresses & 15) == 0;
  return is_eligible ? static_cast<int32_t>(r.format) : kNoScheme;
}

template <typename S>
__device__ __forceinline__ float weight_at(const SchemeRegisters<S>& loaded, int j) {
  if constexpr (S::master == kSplit16) {
    return join<16>(half_at(loaded.param, j), static_cast<int16_t>(half_at(loaded.master, j)));
  } else if constexpr (S::param == kFloat32) {
    return float_of(loaded.param.word[j]);
  } else {
    const float stored = from_bfloat16(half_at(loaded.param, j));
    return S::master == kKahan ? compensated(stored, from_bfloat16(half_at(loaded.master, j)), true) : stored;
  }
}

template <typename S>
__device__ __forceinline__ void put_weight(SchemeRegisters<S>& updated, int j, float weight, uint32_t random) {
  if constexpr (S::master == kSplit16) {
    const Split parts = split<16>(weight);
    put_half(updated.param, j, parts.part), put_half(updated.master, j, parts.remainder);
  } else if constexpr (S::param == kFloat32) {
    updated.param.word[j] = bits_of(weight);
  } else {
    const uint16_t stored = S::master == kStochastic ? to_bfloat16(weight, random) : to_bfloat16(weight);
    put_half(updated.param, j, stored);
    if constexpr (S::master == kKahan) {
      put_half(updated.master, j, to_bfloat16(compensation(weight, from_bfloat16(stored))));
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

// If a warp cannot update its elements, the general path does. That is safe only if the warp has not updated some of
// them in an earlier pass, and if the general path gives it the same elements.
template <typename S>
constexpr bool has_safe_fallback = S::state != kState8 || (kPasses<S> == 1 && kWarp * S::elements == kElementsPerWarp);

template <typename S, int RULE>
__device__ __forceinline__ void update_floats(const BlockState& block, int64_t i, const SchemeRegisters<S>& loaded) {
  SchemeRegisters<S> updated;
  float none = 0;
#pragma unroll
  for (int j = 0; j < S::elements; ++j) {
    float p = weight_at(loaded, j), m = moment_at<S>(loaded.exp_avg, j), v = moment_at<S>(loaded.exp_avg_sq, j);
    const float g = S::param == kFloat32 ? float_of(loaded.grad.word[j]) : from_bfloat16(half_at(loaded.grad, j));
    update_element<RULE>(block.row, p, g, m, v, none, none);
    const uint32_t random = random_of(block, i, j, true);
    put_weight(updated, j, p, random);
    put_moment<S>(updated.exp_avg, j, m, random);
    put_moment<S>(updated.exp_avg_sq, j, v, random);
  }
  store_registers(block.record, i, updated);
}

template <typename S, int RULE>
__device__ __forceinline__ bool update_passes(const BlockState& block, int64_t i, SchemeRegisters<S>& loaded) {
  static_assert(has_safe_fallback<S>);
  bool all_updated = true;
#pragma unroll
  for (int k = 0; k < kPasses<S>; ++k) {
    if (k) load_registers(block.record, i += kTileElements / kPasses<S>, loaded);
    if constexpr (S::state == kState8) {
      all_updated &= update_eight_bit<S, RULE>(block, i, loaded);
    } else {
      update_floats<S, RULE>(block, i, loaded);
    }
  }
  return all_updated;
}

// Waits for the row, and updates a tile. Returns false for a rule without a path here, or to a warp that has an element
// out of range (cuda/eight_bit.cuh): then none of the warp's 512 elements is updated.
template <typename S>
__device__ __forceinline__ bool update_full_tile(const BlockState& block) {
  const int64_t first = block.tile.offset + S::elements * static_cast<int>(threadIdx.x);
  SchemeRegisters<S> loaded;
  load_registers(block.record, first, loaded);
  __syncthreads();
  switch (block.row.rule) {
    case 0:
      return update_passes<S, 0>(block, first, loaded);
    case kL2:
      return update_passes<S, kL2>(block, first, loaded);
    case kCautious:
      return update_passes<S, kCautious>(block, first, loaded);
    default:
      return false;
  }
}

}  // namespace sf
