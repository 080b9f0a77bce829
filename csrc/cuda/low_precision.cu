// The update for tables in which some record is not float32. One launch handles any mix of formats, rules and options:
// each block branches on its own record. Full tiles of common schemes take the compiled paths of schemes.cuh.
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

// True for a tile that has all of its elements, which begin on 16 bytes in any buffer that does, where a stream of
// random numbers does, and with a block of codes.
__device__ __forceinline__ bool is_full(const Record& record, const Tile& tile) {
  return tile.count == kTileElements && tile.offset % kBlock == 0 && tile.whole % kTileElements == 0 &&
         !record.block_row;
}

// True if threads may load four elements at once: 16 bytes of float32, 8 bytes of 16-bit numbers, 4 bytes of codes.
__device__ __forceinline__ bool takes_vectors(const Record& r, const Tile& tile) {
  const int64_t of_weight = r.param | r.grad | r.ema | r.grad_sum | r.master;
  return is_full(r, tile) && ((of_weight | r.exp_avg | r.exp_avg_sq | r.max_exp_avg_sq) & 15) == 0;
}

template <int V>
__device__ __forceinline__ void clear(const Record& record, int64_t i) {
  const float zero[V] = {};
  if (record.grad_dtype == kFloat32) {
    write_floats<V>(kFloat32, record.grad, i, zero);
  } else {
    write_floats<V>(kBfloat16, record.grad, i,
                    zero);  // float16 has the same zero
  }
}

// True for the thread that has the first element of a block of codes: a warp has a block where threads take single
// ones.
template <int V>
__device__ __forceinline__ bool begins_block(int64_t i) {
  return (V == 1 ? static_cast<int>(threadIdx.x) : static_cast<int>(i)) % kBlock == 0;
}

// Updates the elements [i, i + V) of a parameter, which are of block `code` of the tile's codes, by one thread. Without
// `loads` the thread has no elements, and only takes part in the shuffles of its warp.
template <int V>
__device__ __forceinline__ void update_elements(const BlockState& block, int64_t i, int code, bool loads) {
  const Record& record = block.record;
  const Format format = block.format;
  const int32_t rule = block.row.rule;
  const bool is_adam = !(rule & kSgd), has_exp_avg = is_adam || rule & kMomentum;
  const bool has_max = is_adam && rule & kAmsgrad, has_ema = rule & kEma;
  float p[V] = {}, g[V] = {}, m[V] = {}, v[V] = {}, v_max[V] = {}, e[V] = {};
  uint32_t random[V] = {};
  if (loads) {
    read_weights<V>(record, format, i, p);
    if (record.grad) read_floats<V>(record.grad_dtype, record.grad, i, g);
    if (has_exp_avg)
      read_moments<FirstMoment, V>(format.state, record.exp_avg, record.exp_avg_scale, i, block.first_code + code, m);
    if (is_adam)
      read_moments<SecondMoment, V>(format.state, record.exp_avg_sq, record.exp_avg_sq_scale, i,
                                    block.first_code + code, v);
    if (has_max) {
      read_moments<SecondMoment, V>(format.state, record.max_exp_avg_sq, record.max_exp_avg_sq_scale, i,
                                    block.first_code + code, v_max);
    }
    if (has_ema) read_floats<V>(kFloat32, record.ema, i, e);
    if (block.options.grad_sum) {
      float sum[V];
      read_floats<V>(kFloat32, record.grad_sum, i, sum);
#pragma unroll
      for (int j = 0; j < V; ++j) g[j] = mean_gradient(block.row, sum[j], block.options.unscale * g[j]);
      const float zero[V] = {};
      write_floats<V>(kFloat32, record.grad_sum, i, zero);
    }
    if (block.options.zero_grads) clear<V>(record, i);
    // without the average, which is beside the rule: half as many cases
    switch (rule & ~kEma) {
#define SF_CASE(rule)                                                              \
  case (rule): {                                                                   \
    _Pragma("unroll") for (int j = 0; j < V; ++j)                                  \
        update_element<(rule)>(block.row, p[j], g[j], m[j], v[j], v_max[j], e[j]); \
    break;                                                                         \
  }
      SF_FOR_EACH_RULE_WITH(SF_CASE, 0)
#undef SF_CASE
    }
    if (has_ema) {
#pragma unroll
      for (int j = 0; j < V; ++j) ema_update(block.row, p[j], e[j]);
    }
    if (uses_random_bits(format)) {
#pragma unroll
      for (int j = 0; j < V; ++j) random[j] = random_of(block, i, j, V > 1);
    }
    write_weights<V>(record, format, i, p, random);
    if (has_ema) write_floats<V>(kFloat32, record.ema, i, e);
  }
  __syncwarp();  // the old scales are read before the new ones are stored; shuffles order no memory
  if (has_exp_avg) {
    write_moments<FirstMoment, V>(format.state, record.exp_avg, record.exp_avg_scale, i, block.first_code + code,
                                  begins_block<V>(i), loads, m, random);
  }
  if (is_adam) {
    write_moments<SecondMoment, V>(format.state, record.exp_avg_sq, record.exp_avg_sq_scale, i, block.first_code + code,
                                   begins_block<V>(i), loads, v, random);
  }
  if (has_max) {
    write_moments<SecondMoment, V>(format.state, record.max_exp_avg_sq, record.max_exp_avg_sq_scale, i,
                                   block.first_code + code, begins_block<V>(i), loads, v_max, random);
  }
}

// Handles elements of a group that does not move now: adds their gradients to the sum, and clears them.
template <int V>
__device__ __forceinline__ void wait_elements(const BlockState& block, int64_t i, bool adds) {
  const Record& record = block.record;
  if (adds && block.options.grad_sum) {
    float grad[V], sum[V];
    read_floats<V>(record.grad_dtype, record.grad, i, grad);
    read_floats<V>(kFloat32, record.grad_sum, i, sum);
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += block.options.unscale * grad[j];
    write_floats<V>(kFloat32, record.grad_sum, i, sum);
  }
  if (block.options.zero_grads) clear<V>(record, i);
}

// Notes the rows of a tile: it has several, none of which a block of codes crosses, or a part of one.
__device__ __forceinline__ void divide_into_rows(BlockState& block) {
  const int64_t row = block.record.block_row, count = block.tile.count;
  block.row_length = static_cast<int>(row && row < count ? row : count);
  block.rows = block.tile.count / block.row_length;
  block.warps_per_row = (block.row_length + kWarp - 1) / kWarp;
  block.row_padding = block.warps_per_row * kWarp - block.row_length;
  block.padded = block.rows * block.warps_per_row * kWarp;
  block.first_code = block_of(block.record, block.tile.offset);
}

// Calls vector(i) with the first of every four elements of a full aligned tile. For other tiles it calls single(i, w,
// exists) with each element; whole warps make that call, so some threads have no element, and a warp has block w of the
// tile's codes. In a full tile the elements of a warp are consecutive and the same as in schemes.cuh.
template <typename Vector, typename Single>
__device__ __forceinline__ void for_elements(const BlockState& block, Vector vector, Single single) {
  const int thread = static_cast<int>(threadIdx.x);
  if (takes_vectors(block.record, block.tile)) {
    const int first = thread / kWarp * kElementsPerWarp;
#pragma unroll 1
    for (int i = kVector * (thread % kWarp); i < kElementsPerWarp; i += kVector * kWarp)
      vector(block.tile.offset + first + i);
    return;
  }
#pragma unroll 1
  for (int i = thread; i < block.padded; i += kLowPrecisionThreads) {
    const int row = i / kWarp / block.warps_per_row, in_row = i - row * block.warps_per_row * kWarp;
    single(block.tile.offset + (i - row * block.row_padding), i / kWarp, in_row < block.row_length);
  }
}

// Waits for the row, and updates a full tile whose scheme has a path of its own. Returns false if it has none.
__device__ __forceinline__ bool update_scheme(const BlockState& block) {
  switch (block.scheme) {
#define SF_CASE(...)              \
  case Scheme<__VA_ARGS__>::word: \
    return update_full_tile<Scheme<__VA_ARGS__>>(block);
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
  __shared__ BlockState block;  // shared, because registers are scarce
  const bool is_first = threadIdx.x == 0;
  if (is_first) {
    block.skips = found_inf;
    block.index = args.first_tile + blockIdx.x;
    const Tile tile = args.tiles[block.index];
    block.record = args.records[tile.record];
    block.options.turn = turn_of(args, tile.record, block.record);  // before arrive() advances the count
    block.options.grad_sum = block.options.turn.sums() ? element(block.record.grad_sum, tile.offset) : nullptr;
    block.options.unscale = unscaling(args.grad_scale);
    block.options.zero_grads = args.zero_grads && block.record.grad;
    block.format = format_of(block.record.format);
    block.tile = tile;
    divide_into_rows(block);
    const bool is_plain = !block.options.zero_grads && is_full(block.record, tile);
    block.scheme = is_plain ? scheme_of(block.record) : kNoScheme;
    block.moves = !found_inf && block.options.turn.moves(block.record.grad != 0);
  }
  __syncthreads();
  const bool has_grad = block.record.grad != 0, moves = block.moves;
  if (is_first && !block.skips && !moves && args.groups) {
    arrive<true>(args, block.tile.record, block.record, block.options.turn);
  }
  if (is_first && moves) {
    prepare_row<true>(args, block.index, block.tile.record, block.record, block.options.turn, block.row);
    block.row.low = rounded_inside(block.row.low, block.format.param, true);
    block.row.high = rounded_inside(block.row.high, block.format.param, false);
    block.random = tile_random(block.record.key, block.row.step, block.tile.whole);
  }
  if (moves) {
    if (!update_scheme(block)) {
      for_elements(
          block,
          [&](int64_t i) {
            update_elements<kVector>(block, i, static_cast<int>(i - block.tile.offset) / kBlock, true);
          },
          [&](int64_t i, int w, bool exists) { update_elements<1>(block, i, w, exists); });
    }
  } else if (has_grad) {
    const bool adds = !block.skips && block.options.turn.adds(has_grad);
    for_elements(
        block, [&](int64_t i) { wait_elements<kVector>(block, i, adds); },
        [&](int64_t i, int, bool exists) {
          if (exists) wait_elements<1>(block, i, adds);
        });
  }
  if (args.sets && !block.skips) report_tile(args, is_first && block.moves);
}

const char* launch_low_precision(const StepArgs& args, int64_t stream) {
  SF_LAUNCH(low_precision_kernel, static_cast<unsigned>(args.num_tiles), kLowPrecisionThreads, stream, args);
  return launch_error();
}

}  // namespace sf
