// One launch for any number of groups: block b updates tile first_tile + b, whatever parameter it belongs to.
#include "cuda/launch.cuh"

#include "cuda/access.cuh"
#include "cuda/block.cuh"
#include "cuda/step.h"
#include "turn.h"
#include "update_rule.h"

namespace sf {

// Two blocks on a multiprocessor leave 64 registers to a thread: enough, without spills, for two vectors of every
// buffer in flight under every rule, so that one block loads while the other computes.
constexpr int kThreads = 512;
constexpr int kBlocksPerMultiprocessor = 2;
// The kernel that does more than update takes more registers: three blocks of half the size leave it 80.
constexpr int kExtrasThreads = 256;
constexpr int kExtrasBlocksPerMultiprocessor = 3;
static_assert(kTileElements % (kThreads * kVector) == 0 && kTileElements % (kExtrasThreads * kVector) == 0);
static_assert(kExtrasThreads == kLanes);  // of whom report_tile() takes one each

template <bool OPTIONS>
constexpr int threads = OPTIONS ? kExtrasThreads : kThreads;
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

// Vectors need every buffer that the rule touches on a 16-byte boundary. Tile offsets keep it, so a record's
// addresses decide; those a rule does not use are 0.
__device__ __forceinline__ bool is_aligned(const Record& r) {
  return ((r.param | r.grad | r.exp_avg | r.exp_avg_sq | r.max_exp_avg_sq | r.ema | r.grad_sum) & 15) == 0;
}

template <bool OPTIONS>
__device__ __forceinline__ int vector_index(int k) {
  return (k * threads<OPTIONS> + static_cast<int>(threadIdx.x)) * kVector;
}

__device__ __forceinline__ float4 zeros() { return {0.0f, 0.0f, 0.0f, 0.0f}; }

// The mean of a vector of gradients and of those summed up before, whose sum begins anew.
__device__ __forceinline__ float4 take_mean(const Row& row, const StepOptions& options, const float4& grad,
                                            float* grad_sum) {
  const float4 sum = load4(grad_sum);
  store4(grad_sum, zeros());
  return {mean_gradient(row, sum.x, options.unscale * grad.x), mean_gradient(row, sum.y, options.unscale * grad.y),
          mean_gradient(row, sum.z, options.unscale * grad.z), mean_gradient(row, sum.w, options.unscale * grad.w)};
}

template <int RULE, bool OPTIONS>
__device__ __forceinline__ void update_full_tile(const Row& row, const Buffers& at, const StepOptions& options) {
  // vectors of every buffer that a thread has in flight: as many as its registers hold
  constexpr int kBuffers = 2 + uses_exp_avg<RULE> + uses_exp_avg_sq<RULE> + uses_max_exp_avg_sq<RULE> + uses_ema<RULE>;
  constexpr int kInFlight = OPTIONS || kBuffers > 4 ? 1 : vectors_per_thread<OPTIONS>;
#pragma unroll
  for (int first = 0; first < vectors_per_thread<OPTIONS>; first += kInFlight) {
    float4 param[kInFlight], grad[kInFlight], exp_avg[kInFlight], exp_avg_sq[kInFlight], max_exp_avg_sq[kInFlight],
        ema[kInFlight];
    // All loads before the first use: what hides the latency of memory here is bytes in flight.
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
    if (first == 0) __syncthreads();  // now the row is there
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

// The ragged end of a parameter, and every tile of a record that is not aligned, or moves by earlier gradients alone.
template <int RULE, bool OPTIONS>
__device__ __forceinline__ void update_partial_tile(const Row& row, const Buffers& at, const StepOptions& options,
                                                    int count) {
  __syncthreads();  // now the row is there
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

// Gradients of a group that waits for its turn are summed up, and gradients are cleared.
__device__ __forceinline__ void wait_tile(const Record& record, int64_t offset, const StepOptions& options, bool adds) {
  float *grad = element(record.grad, offset), *grad_sum = adds ? options.grad_sum : nullptr;
  const int64_t left = record.numel - offset;
  if (left >= kTileElements && is_aligned(record)) {
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
  const int count = static_cast<int>(left < kTileElements ? left : kTileElements);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kExtrasThreads) {
    if (grad_sum) store1(grad_sum + i, load1(grad_sum + i) + options.unscale * load1(grad + i));
    if (options.zero_grads) store1(grad + i, 0.0f);
  }
}

template <int RULE, bool OPTIONS>
__device__ __forceinline__ void update_tile(const Record& record, const Row& row, int64_t offset,
                                            const StepOptions& options) {
  const Buffers at = {
      reinterpret_cast<float*>(record.param) + offset,
      OPTIONS ? element(record.grad, offset) : reinterpret_cast<float*>(record.grad) + offset,
      uses_exp_avg<RULE> ? reinterpret_cast<float*>(record.exp_avg) + offset : nullptr,
      uses_exp_avg_sq<RULE> ? reinterpret_cast<float*>(record.exp_avg_sq) + offset : nullptr,
      uses_max_exp_avg_sq<RULE> ? reinterpret_cast<float*>(record.max_exp_avg_sq) + offset : nullptr,
      uses_ema<RULE> ? reinterpret_cast<float*>(record.ema) + offset : nullptr,
  };
  const int64_t left = record.numel - offset;
  if (left >= kTileElements && is_aligned(record) && (!OPTIONS || record.grad)) {
    update_full_tile<RULE, OPTIONS>(row, at, options);
  } else {
    update_partial_tile<RULE, OPTIONS>(row, at, options, static_cast<int>(left < kTileElements ? left : kTileElements));
  }
}

// The part of a block that depends on its rule. RULE is one rule for the whole launch, or kMixedRules: then each block
// follows its own row.
template <int RULE, bool OPTIONS>
__device__ __forceinline__ void update_by_rule(const StepArgs& args, const Tile& tile, const Record& record,
                                               const Row& row, const StepOptions& options) {
  if constexpr (RULE != kMixedRules) {
    update_tile<RULE, OPTIONS>(record, row, tile.offset, options);
  } else {
    switch (args.rows[record.row].rule) {
#define SF_CASE(rule)                                                \
  case (rule):                                                       \
    update_tile<(rule), OPTIONS>(record, row, tile.offset, options); \
    break;
      SF_FOR_EACH_RULE(SF_CASE)
#undef SF_CASE
    }
  }
}

template <int RULE, bool OPTIONS>
__global__ void __launch_bounds__(threads<OPTIONS>, OPTIONS ? kExtrasBlocksPerMultiprocessor : kBlocksPerMultiprocessor)
    step_kernel(StepArgs args) {
  const bool skips = args.found_inf && *args.found_inf != 0.0f;
  if (skips && !(OPTIONS && args.zero_grads)) return;
  const int64_t t = args.first_tile + blockIdx.x;
  const Tile tile = args.tiles[t];
  const Record record = args.records[tile.record];
  if (!OPTIONS && !record.grad) return;
  __shared__ Row row;
  __shared__ StepOptions options;  // there, because registers are short
  bool moves = true;
  if constexpr (OPTIONS) {
    if (threadIdx.x == 0) {
      options.turn = turn_of(args, tile.record, record);  // before the block advances what that is read from
      options.grad_sum = options.turn.sums() ? element(record.grad_sum, tile.offset) : nullptr;
      options.unscale = unscaling(args.grad_scale);
      options.zero_grads = args.zero_grads && record.grad;
    }
    __syncthreads();
    moves = !skips && options.turn.moves(record.grad != 0);
    if (!moves) {
      if (!skips && args.groups && threadIdx.x == 0) arrive<OPTIONS>(args, tile.record, record, options.turn);
      wait_tile(record, tile.offset, options, !skips && options.turn.adds(record.grad != 0));
    }
  }
  if (moves) {
    if (threadIdx.x == 0) prepare_row<OPTIONS>(args, t, tile.record, record, OPTIONS ? options.turn : Turn{}, row);
    update_by_rule<RULE, OPTIONS>(args, tile, record, row, options);
  }
  if constexpr (OPTIONS) {
    if (args.sets && record.set && !skips) report_tile(args, t, tile, record, moves);
  }
}

const char* launch_step(const StepArgs& args, int device, int64_t stream) {
  if (const cudaError_t error = cudaSetDevice(device)) return cudaGetErrorString(error);
  if (args.is_low_precision) return launch_low_precision(args, stream);
  const auto grid = static_cast<unsigned>(args.num_tiles);
  if (args.takes_turns || args.zero_grads || args.sets) {
    SF_LAUNCH((step_kernel<kMixedRules, true>), grid, kExtrasThreads, stream, args);
    return launch_error();
  }
  switch (args.rule) {
#define SF_CASE(rule)                                                      \
  case (rule):                                                             \
    SF_LAUNCH((step_kernel<(rule), false>), grid, kThreads, stream, args); \
    break;
    SF_FOR_EACH_RULE(SF_CASE)
#undef SF_CASE
    default:
      SF_LAUNCH((step_kernel<kMixedRules, false>), grid, kThreads, stream, args);
  }
  return launch_error();
}

int runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

int driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

}  // namespace sf
