// Updates one tile of float32 parameters with float32 state, by 128-bit accesses where all buffers are aligned.
#pragma once

#include "cuda/access.cuh"
#include "cuda/block.cuh"
#include "update_rule.h"

namespace sf {

// Two blocks per multiprocessor leave 64 registers per thread. That is enough, without spills, to have two vectors of
// every buffer in flight under every rule, so that one block loads while the other computes.
constexpr int kThreads = 512;
constexpr int kBlocksPerMultiprocessor = 2;
// The kernel with options needs more registers: three blocks of half the size leave it 80.
constexpr int kOptionsThreads = 256;
constexpr int kOptionsBlocksPerMultiprocessor = 3;
static_assert(kTileElements % (kThreads * kVector) == 0 && kTileElements % (kOptionsThreads * kVector) == 0);
static_assert(kOptionsThreads == kLanes);  // report_tile() needs one thread per lane

template <bool OPTIONS>
constexpr int threads = OPTIONS ? kOptionsThreads : kThreads;
template <bool OPTIONS>
constexpr int blocks_per_multiprocessor = OPTIONS ? kOptionsBlocksPerMultiprocessor : kBlocksPerMultiprocessor;
template <bool OPTIONS>
constexpr int vectors_per_thread = kTileElements / (threads<OPTIONS> * kVector);

struct Buffers {
  float* param;
  float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* max_exp_avg_sq;
  float* ema;
};

// True if every buffer that the rule uses is on a 16-byte boundary, as 128-bit accesses need. Tile offsets are
// multiples of 16 bytes, so the addresses of the record decide; unused ones are 0.
__device__ __forceinline__ bool is_aligned(const Record& r) {
  return ((r.param | r.grad | r.exp_avg | r.exp_avg_sq | r.max_exp_avg_sq | r.ema | r.grad_sum) & 15) == 0;
}

template <bool OPTIONS>
__device__ __forceinline__ int vector_index(int k) {
  return (k * threads<OPTIONS> + static_cast<int>(threadIdx.x)) * kVector;
}

__device__ __forceinline__ float4 zeros() { return {0.0f, 0.0f, 0.0f, 0.0f}; }

// The mean of a vector of gradients and the sum of the earlier ones, which is cleared.
__device__ __forceinline__ float4 take_mean(const Row& row, const StepOptions& options, const float4& grad,
                                            float* grad_sum) {
  const float4 sum = load4(grad_sum);
  store4(grad_sum, zeros());
  return {mean_gradient(row, sum.x, options.unscale * grad.x), mean_gradient(row, sum.y, options.unscale * grad.y),
          mean_gradient(row, sum.z, options.unscale * grad.z), mean_gradient(row, sum.w, options.unscale * grad.w)};
}

template <int RULE, bool OPTIONS>
__device__ __forceinline__ void update_full_tile(const Row& row, const Buffers& at, const StepOptions& options) {
  // the number of vectors of every buffer that a thread has in flight, limited by its registers
  constexpr int kBuffers = 2 + uses_exp_avg<RULE> + uses_exp_avg_sq<RULE> + uses_max_exp_avg_sq<RULE> + uses_ema<RULE>;
  constexpr int kInFlight = OPTIONS || kBuffers > 4 ? 1 : vectors_per_thread<OPTIONS>;
#pragma unroll
  for (int first = 0; first < vectors_per_thread<OPTIONS>; first += kInFlight) {
    float4 param[kInFlight], grad[kInFlight], exp_avg[kInFlight], exp_avg_sq[kInFlight], max_exp_avg_sq[kInFlight],
        ema[kInFlight];
    // all loads before the first use: bytes in flight hide the latency of memory
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int i = vector_index<OPTIONS>(first + k);
      param[k] = load4(at.param + i);
      grad[k] = load4(at.grad + i);
      if constexpr (uses_exp_avg<RULE>) exp_avg[k] = load4(at.exp_avg + i);
      if constexpr (uses_exp_avg_sq<RULE>) exp_avg_sq[k] = load4(at.exp_avg_sq + i);
      if constexpr (uses_max_exp_avg_sq<RULE>) max_exp_avg_sq[k] = load4(at.max_exp_avg_sq + i);
      if constexpr (uses_ema<RULE>) ema[k] = load4(at.ema + i);
    }
    if (first == 0) __syncthreads();  // waits for thread 0 to prepare the row
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int i = vector_index<OPTIONS>(first + k);
      float4 &p = param[k], &g = grad[k], &m = exp_avg[k], &v = exp_avg_sq[k], &v_max = max_exp_avg_sq[k], &e = ema[k];
      if constexpr (OPTIONS) {
        if (options.grad_sum) g = take_mean(row, options, g, options.grad_sum + i);
        if (options.zero_grads) store4(at.grad + i, zeros());
      }
      update_element<RULE>(row, p.x, g.x, m.x, v.x, v_max.x, e.x);
      update_element<RULE>(row, p.y, g.y, m.y, v.y, v_max.y, e.y);
      update_element<RULE>(row, p.z, g.z, m.z, v.z, v_max.z, e.z);
      update_element<RULE>(row, p.w, g.w, m.w, v.w, v_max.w, e.w);
      store4(at.param + i, p);
      if constexpr (uses_exp_avg<RULE>) store4(at.exp_avg + i, m);
      if constexpr (uses_exp_avg_sq<RULE>) store4(at.exp_avg_sq + i, v);
      if constexpr (uses_max_exp_avg_sq<RULE>) store4(at.max_exp_avg_sq + i, v_max);
      if constexpr (uses_ema<RULE>) store4(at.ema + i, e);
    }
  }
}

// Updates single elements: for the ragged end of a parameter, records that are not aligned, and records that move by
// the sum of their earlier gradients alone.
template <int RULE, bool OPTIONS>
__device__ __forceinline__ void update_partial_tile(const Row& row, const Buffers& at, const StepOptions& options,
                                                    int count) {
  __syncthreads();  // waits for thread 0 to prepare the row
  for (int i = static_cast<int>(threadIdx.x); i < count; i += threads<OPTIONS>) {
    float p = load1(at.param + i), m = 0, v = 0, v_max = 0, e = 0;
    float g = OPTIONS && !at.grad ? 0.0f : load1(at.grad + i);
    if constexpr (OPTIONS) {
      if (options.grad_sum) {
        g = mean_gradient(row, load1(options.grad_sum + i), options.unscale * g);
        store1(options.grad_sum + i, 0.0f);
      }
      if (options.zero_grads && at.grad) store1(at.grad + i, 0.0f);
    }
    if constexpr (uses_exp_avg<RULE>) m = load1(at.exp_avg + i);
    if constexpr (uses_exp_avg_sq<RULE>) v = load1(at.exp_avg_sq + i);
    if constexpr (uses_max_exp_avg_sq<RULE>) v_max = load1(at.max_exp_avg_sq + i);
    if constexpr (uses_ema<RULE>) e = load1(at.ema + i);
    update_element<RULE>(row, p, g, m, v, v_max, e);
    store1(at.param + i, p);
    if constexpr (uses_exp_avg<RULE>) store1(at.exp_avg + i, m);
    if constexpr (uses_exp_avg_sq<RULE>) store1(at.exp_avg_sq + i, v);
    if constexpr (uses_max_exp_avg_sq<RULE>) store1(at.max_exp_avg_sq + i, v_max);
    if constexpr (uses_ema<RULE>) store1(at.ema + i, e);
  }
}

// Handles a tile of a group that does not move now: adds its gradients to the sum, and clears them.
__device__ __forceinline__ void wait_tile(const Record& record, const Tile& tile, const StepOptions& options,
                                          bool adds) {
  float *grad = element(record.grad, tile.offset), *grad_sum = adds ? options.grad_sum : nullptr;
  if (tile.count == kTileElements && is_aligned(record)) {
    for (int k = 0; k < vectors_per_thread<true>; ++k) {
      const int i = vector_index<true>(k);
      if (grad_sum) {
        const float4 g = load4(grad + i);
        float4 sum = load4(grad_sum + i);
        sum.x += options.unscale * g.x;
        sum.y += options.unscale * g.y;
        sum.z += options.unscale * g.z;
        sum.w += options.unscale * g.w;
        store4(grad_sum + i, sum);
      }
      if (options.zero_grads) store4(grad + i, zeros());
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < tile.count; i += kOptionsThreads) {
    if (grad_sum) store1(grad_sum + i, load1(grad_sum + i) + options.unscale * load1(grad + i));
    if (options.zero_grads) store1(grad + i, 0.0f);
  }
}

template <int RULE, bool OPTIONS>
__device__ __forceinline__ void update_tile(const Record& record, const Row& row, const Tile& tile,
                                            const StepOptions& options) {
  // float32 draws no random numbers, so its tiles are cut every kTileElements, and vectors are aligned in all of them
  const int64_t offset = tile.offset;
  const Buffers at = {
      reinterpret_cast<float*>(record.param) + offset,
      OPTIONS ? element(record.grad, offset) : reinterpret_cast<float*>(record.grad) + offset,
      uses_exp_avg<RULE> ? reinterpret_cast<float*>(record.exp_avg) + offset : nullptr,
      uses_exp_avg_sq<RULE> ? reinterpret_cast<float*>(record.exp_avg_sq) + offset : nullptr,
      uses_max_exp_avg_sq<RULE> ? reinterpret_cast<float*>(record.max_exp_avg_sq) + offset : nullptr,
      uses_ema<RULE> ? reinterpret_cast<float*>(record.ema) + offset : nullptr,
  };
  if (tile.count == kTileElements && is_aligned(record) && (!OPTIONS || record.grad)) {
    update_full_tile<RULE, OPTIONS>(row, at, options);
  } else {
    update_partial_tile<RULE, OPTIONS>(row, at, options, tile.count);
  }
}

}  // namespace sf
