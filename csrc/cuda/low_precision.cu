// The launch of step.cu for records of which some are not float32: any mix of formats, rules and options, each block by
// what its own record says.
#include "cuda/launch.cuh"

#include "cuda/access.cuh"
#include "cuda/block.cuh"
#include "cuda/load_store.cuh"
#include "cuda/schemes.cuh"
#include "cuda/step.h"
#include "format.h"
#include "random_bits.h"
#include "turn.h"
#include "update_rule.h"

namespace sf {

// Whether elements may be taken four at a time: 16 bytes of float32, 8 of 16 bits, 4 of codes.
__device__ __forceinline__ bool takes_vectors(const Record& r) {
  return ((r.param | r.grad | r.exp_avg | r.exp_avg_sq | r.max_exp_avg_sq | r.ema | r.grad_sum | r.master) & 15) == 0;
}

template <int V>
__device__ __forceinline__ void clear(const Record& record, int64_t i) {
  const float zero[V] = {};
  if (record.grad_dtype == kFloat32) {
    write_floats<V>(kFloat32, record.grad, i, zero);
  } else {
    write_floats<V>(kBfloat16, record.grad, i, zero);  // of any 16 bits
  }
}

// The elements [i, i + V) of a parameter, by one thread; without `loads` they are not there, and it only takes part in
// what its warp does together.
template <int V>
__device__ __forceinline__ void update_elements(const BlockState& at, int64_t i, bool loads) {
  const Record& record = at.record;
  const Format format = at.format;
  const int32_t rule = at.row.rule;
  const bool is_adam = !(rule & kSgd), has_exp_avg = is_adam || rule & kMomentum;
  const bool has_max = is_adam && rule & kAmsgrad, has_ema = rule & kEma;
  float p[V] = {}, g[V] = {}, m[V] = {}, v[V] = {}, v_max[V] = {}, e[V] = {};
  uint32_t random[V] = {};
  if (loads) {
    read_weights<V>(record, format, i, p);
    if (record.grad) read_floats<V>(record.grad_dtype, record.grad, i, g);
    if (has_exp_avg) read_moments<FirstMoment, V>(format.state, record.exp_avg, record.exp_avg_scale, i, m);
    if (is_adam) read_moments<SecondMoment, V>(format.state, record.exp_avg_sq, record.exp_avg_sq_scale, i, v);
    if (has_max) {
      read_moments<SecondMoment, V>(format.state, record.max_exp_avg_sq, record.max_exp_avg_sq_scale, i, v_max);
    }
    if (has_ema) read_floats<V>(kFloat32, record.ema, i, e);
    if (at.options.grad_sum) {
      float sum[V];
      read_floats<V>(kFloat32, record.grad_sum, i, sum);
#pragma unroll
      for (int j = 0; j < V; ++j) g[j] = mean_gradient(at.row, sum[j], at.options.unscale * g[j]);
      const float zero[V] = {};
      write_floats<V>(kFloat32, record.grad_sum, i, zero);
    }
    if (at.options.zero_grads) clear<V>(record, i);
    switch (rule) {
#define SF_CASE(rule)                                                           \
  case (rule): {                                                                \
    _Pragma("unroll") for (int j = 0; j < V; ++j)                               \
        update_element<(rule)>(at.row, p[j], g[j], m[j], v[j], v_max[j], e[j]); \
    break;                                                                      \
  }
      SF_FOR_EACH_RULE(SF_CASE)
#undef SF_CASE
    }
    if (draws(format)) {
#pragma unroll
      for (int j = 0; j < V; ++j) random[j] = random_of(at, i, j, V > 1);
    }
    write_weights<V>(record, format, i, p, random);
    if (has_ema) write_floats<V>(kFloat32, record.ema, i, e);
  }
  if (has_exp_avg) {
    write_moments<FirstMoment, V>(format.state, record.exp_avg, record.exp_avg_scale, i, loads, m, random);
  }
  if (is_adam) {
    write_moments<SecondMoment, V>(format.state, record.exp_avg_sq, record.exp_avg_sq_scale, i, loads, v, random);
  }
  if (has_max) {
    write_moments<SecondMoment, V>(format.state, record.max_exp_avg_sq, record.max_exp_avg_sq_scale, i, loads, v_max,
                                   random);
  }
}

// Gradients of a group that waits for its turn are summed up, and gradients are cleared.
template <int V>
__device__ __forceinline__ void wait_elements(const BlockState& at, int64_t i, bool adds) {
  const Record& record = at.record;
  if (adds && at.options.grad_sum) {
    float grad[V], sum[V];
    read_floats<V>(record.grad_dtype, record.grad, i, grad);
    read_floats<V>(kFloat32, record.grad_sum, i, sum);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += at.options.unscale * grad[j];
    write_floats<V>(kFloat32, record.grad_sum, i, sum);
  }
  if (at.options.zero_grads) clear<V>(record, i);
}

// Calls `vector` with the first of four elements of a full tile that is aligned, else `single` with each element, and
// whether there is one: whole warps take part. A warp's elements of a full tile are neighbours, those of schemes.cuh.
template <typename Vector, typename Single>
__device__ __forceinline__ void for_elements(const BlockState& at, Vector vector, Single single) {
  const int64_t left = at.record.numel - at.tile.offset;
  const int thread = static_cast<int>(threadIdx.x);
  if (left >= kTileElements && takes_vectors(at.record)) {
    const int first = thread / kWarp * kElementsOfWarp;
#pragma unroll 1
    for (int i = kVector * (thread % kWarp); i < kElementsOfWarp; i += kVector * kWarp)
      vector(at.tile.offset + first + i);
    return;
  }
  const int count = static_cast<int>(left < kTileElements ? left : kTileElements);
  for (int i = thread; i / kWarp * kWarp < count; i += kLowPrecisionThreads) single(at.tile.offset + i, i < count);
}

// Whether the tile, if it is full and has a path of its own, is updated; waits for the row.
__device__ __forceinline__ bool update_scheme(const BlockState& at) {
  switch (at.scheme) {
#define SF_CASE(...)              \
  case Scheme<__VA_ARGS__>::word: \
    return update_full_tile<Scheme<__VA_ARGS__>>(at);
    SF_FOR_EACH_SCHEME(SF_CASE)
#undef SF_CASE
    default:
      __syncthreads();
      return false;
  }
}

__global__ void __launch_bounds__(kLowPrecisionThreads, kLowPrecisionBlocksPerMultiprocessor)
    low_precision_kernel(StepArgs args) {
  const bool found_inf = args.found_inf && *args.found_inf != 0.0f;
  if (found_inf && !args.zero_grads) return;
  __shared__ BlockState at;  // there, because registers are short
  const bool leads = threadIdx.x == 0;
  if (leads) {
    at.skips = found_inf;
    at.index = args.first_tile + blockIdx.x;
    const Tile tile = args.tiles[at.index];
    at.record = args.records[tile.record];
    at.options.turn = turn_of(args, tile.record, at.record);  // before the block advances what that is read from
    at.options.grad_sum = at.options.turn.sums() ? element(at.record.grad_sum, tile.offset) : nullptr;
    at.options.unscale = unscaling(args.grad_scale);
    at.options.zero_grads = args.zero_grads && at.record.grad;
    at.format = format_of(at.record.format);
    at.tile = tile;
    const bool is_plain = !at.options.zero_grads && at.record.numel - tile.offset >= kTileElements;
    at.scheme = is_plain ? scheme_of(at.record) : kNoScheme;
  }
  __syncthreads();
  const bool has_grad = at.record.grad != 0, moves = !at.skips && at.options.turn.moves(has_grad);
  if (leads) at.moves = moves;
  if (leads && !at.skips && !moves && args.groups) arrive<true>(args, at.tile.record, at.record, at.options.turn);
  if (leads && moves) {
    prepare_row<true>(args, at.index, at.tile.record, at.record, at.options.turn, at.row);
    at.row.low = rounded_inside(at.row.low, at.format.param, true);
    at.row.high = rounded_inside(at.row.high, at.format.param, false);
    at.stream = tile_stream(at.record.key, at.row.step, at.tile.offset / kTileElements);
  }
  if (moves) {
    if (!update_scheme(at)) {
      for_elements(
          at, [&](int64_t i) { update_elements<kVector>(at, i, true); },
          [&](int64_t i, bool is_there) { update_elements<1>(at, i, is_there); });
    }
  } else if (has_grad) {
    const bool adds = !at.skips && at.options.turn.adds(has_grad);
    for_elements(
        at, [&](int64_t i) { wait_elements<kVector>(at, i, adds); },
        [&](int64_t i, bool is_there) {
          if (is_there) wait_elements<1>(at, i, adds);
        });
  }
  if (args.sets && at.record.set && !at.skips) report_tile(args, at.index, at.tile, at.record, leads && at.moves);
}

const char* launch_low_precision(const StepArgs& args, int64_t stream) {
  SF_LAUNCH(low_precision_kernel, static_cast<unsigned>(args.num_tiles), kLowPrecisionThreads, stream, args);
  return launch_error();
}

}  // namespace sf
