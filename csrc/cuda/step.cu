// The update in one launch for any number of groups: block b updates tile first_tile + b, whichever parameter that
// belongs to. Every rule has a kernel of its own; one more kernel reads the rule of each row, and another also has the
// options of StepOptions.
#include "cuda/launch.cuh"

#include "cuda/block.cuh"
#include "cuda/float32_tile.cuh"
#include "cuda/step.h"
#include "turn.h"
#include "update_rule.h"

namespace sf {

// Updates a tile by its rule. RULE is the rule of the whole launch, or kMixedRules: then each block reads its row's.
template <int RULE, bool OPTIONS>
__device__ __forceinline__ void update_by_rule(const StepArgs& args, const Tile& tile, const Record& record,
                                               const Row& row, const StepOptions& options) {
  if constexpr (RULE != kMixedRules) {
    update_tile<RULE, OPTIONS>(record, row, tile, options);
  } else {
    switch (args.rows[record.row].rule) {
#define SF_CASE(rule)                                         \
  case (rule):                                                \
    update_tile<(rule), OPTIONS>(record, row, tile, options); \
    break;
      SF_FOR_EACH_RULE(SF_CASE)
#undef SF_CASE
    }
  }
}

template <int RULE, bool OPTIONS>
__global__ void __launch_bounds__(threads<OPTIONS>, blocks_per_multiprocessor<OPTIONS>) step_kernel(StepArgs args) {
  const bool skips = args.found_inf && *args.found_inf != 0.0f;
  if (skips && !(OPTIONS && args.zero_grads)) return;
  const int64_t t = args.first_tile + blockIdx.x;
  const Tile tile = args.tiles[t];
  const Record record = args.records[tile.record];
  if (!OPTIONS && !record.grad) return;
  __shared__ Row row;
  __shared__ StepOptions options;  // shared, because registers are scarce
  bool moves = true;
  if constexpr (OPTIONS) {
    if (threadIdx.x == 0) {
      options.turn = turn_of(args, tile.record, record);  // before arrive() advances the count
      options.grad_sum = options.turn.sums() ? element(record.grad_sum, tile.offset) : nullptr;
      options.unscale = unscaling(args.grad_scale);
      options.zero_grads = args.zero_grads && record.grad;
    }
    __syncthreads();
    moves = !skips && options.turn.moves(record.grad != 0);
    if (!moves) {
      if (!skips && args.groups && threadIdx.x == 0) arrive<OPTIONS>(args, tile.record, record, options.turn);
      wait_tile(record, tile, options, !skips && options.turn.adds(record.grad != 0));
    }
  }
  if (moves) {
    if (threadIdx.x == 0) prepare_row<OPTIONS>(args, t, tile.record, record, OPTIONS ? options.turn : Turn{}, row);
    update_by_rule<RULE, OPTIONS>(args, tile, record, row, options);
  }
  if constexpr (OPTIONS) {
    if (args.sets && !skips) report_tile(args, moves);
  }
}

const char* launch_step(const StepArgs& args, int device, int64_t stream) {
  if (const cudaError_t error = cudaSetDevice(device)) return cudaGetErrorString(error);
  if (args.is_low_precision) return launch_low_precision(args, stream);
  const auto grid = static_cast<unsigned>(args.num_tiles);
  if (args.takes_turns || args.zero_grads || args.sets) {
    SF_LAUNCH((step_kernel<kMixedRules, true>), grid, kOptionsThreads, stream, args);
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
