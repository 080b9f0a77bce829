// Loads and stores the elements of a thread in their stored form, for a scheme that is known at compile time. The
// elements stay packed in registers, so that every load can be in flight before the first use.
#pragma once

#include "cuda/access.cuh"
#include "cuda/load_store.cuh"
#include "format.h"
#include "tables.h"

namespace sf {

template <int PARAM, int STATE, int MASTER>
struct Scheme {
  static constexpr int32_t word = PARAM | STATE << 2 | MASTER << 4;  // Record::format
  static constexpr int param = PARAM, state = STATE, master = MASTER;
  static constexpr int param_bytes = PARAM == kFloat32 ? 4 : 2;
  static constexpr int state_bytes = STATE == kState32 ? 4 : STATE == kState16 ? 2 : 1;
  static constexpr int master_bytes = MASTER == kSplit8 ? 1 : MASTER == kKahan || MASTER == kSplit16 ? 2 : 0;
  static constexpr int elements = state_bytes == 1 || master_bytes == 1 ? 16 : 8;
};

template <typename S>
struct SchemeRegisters {
  Words<S::elements * S::param_bytes> param, grad;
  Words<S::elements * S::state_bytes> exp_avg, exp_avg_sq;
  Words<S::elements*(S::master_bytes ? S::master_bytes : 1)> master;
  float scale, scale_sq;
};

template <typename S>
__device__ __forceinline__ void load_registers(const Record& record, int64_t i, SchemeRegisters<S>& to) {
  constexpr int V = S::elements;
  to.param = load_words<V * S::param_bytes>(record.param, S::param_bytes * i);
  to.grad = load_words<V * S::param_bytes>(record.grad, S::param_bytes * i);
  to.exp_avg = load_words<V * S::state_bytes>(record.exp_avg, S::state_bytes * i);
  to.exp_avg_sq = load_words<V * S::state_bytes>(record.exp_avg_sq, S::state_bytes * i);
  if constexpr (S::master_bytes) to.master = load_words<V * S::master_bytes>(record.master, S::master_bytes * i);
  if constexpr (S::state == kState8) {
    to.scale = read_scale(record.exp_avg_scale, i / kBlock);
    to.scale_sq = read_scale(record.exp_avg_sq_scale, i / kBlock);
  }
}

template <typename S>
__device__ __forceinline__ void store_registers(const Record& record, int64_t i, const SchemeRegisters<S>& from) {
  store_words(record.param, S::param_bytes * i, from.param);
  store_words(record.exp_avg, S::state_bytes * i, from.exp_avg);
  store_words(record.exp_avg_sq, S::state_bytes * i, from.exp_avg_sq);
  if constexpr (S::master_bytes) store_words(record.master, S::master_bytes * i, from.master);
}

// Writes the j-th of packed 16-bit elements, in ascending order.
template <int BYTES>
__device__ __forceinline__ void put_half(Words<BYTES>& words, int j, uint16_t x) {
  words.word[j / 2] = j % 2 ? words.word[j / 2] | static_cast<uint32_t>(x) << 16 : x;
}

}  // namespace sf
