// The elements of a thread as they are stored, of a scheme that is known when the kernel is compiled.
#pragma once

#include "cuda/access.cuh"
#include "cuda/load_store.cuh"
#include "format.h"
#include "tables.h"

namespace sf {

template <int PARAM, int STATE, int MASTER>
struct Scheme {
  static constexpr int32_t word = PARAM | STATE << 2 | MASTER << 4;  // of a record's format
  static constexpr int param = PARAM, state = STATE, master = MASTER;
  static constexpr int param_bytes = PARAM == kFloat32 ? 4 : 2;
  static constexpr int state_bytes = STATE == kState32 ? 4 : STATE == kState16 ? 2 : 1;
  static constexpr int master_bytes = MASTER == kSplit8 ? 1 : MASTER == kKahan || MASTER == kSplit16 ? 2 : 0;
  static constexpr int elements = state_bytes == 1 || master_bytes == 1 ? 16 : 8;
};

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

}  // namespace sf
