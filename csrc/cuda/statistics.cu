// Gradient statistics in one launch: block b adds the squares of tile first_tile + b to one of the copies of its
// player's sum, and the last block to finish adds up the copies. Sums are exact, so the result does not depend on the
// order of the blocks.
#include "cuda/launch.cuh"

#include "clipping.h"
#include "cuda/access.cuh"
#include "cuda/exact_squares.cuh"
#include "cuda/load_store.cuh"
#include "cuda/step.h"
#include "turn.h"
#include "update_rule.h"

namespace sf {

// Within a full tile a thread loads entries of 4 consecutive elements, 128 bits, kLanes entries apart.
constexpr int kLaneEntries = kTileElements / (4 * kLanes);
static_assert(kTileElements % (4 * kLanes) == 0);

// Blocks that fit on a multiprocessor: enough bytes in flight, and registers for the elements that a thread keeps.
constexpr int kBlocksPerMultiprocessorOfStatistics = 3;

// The gradient of a tile as the update uses it, except for clipping: unscaled, and the mean with earlier gradients.
struct EffectiveGradient {
  int64_t grad;  // address of the parameter's gradient; 0: absent
  int64_t dtype;
  int64_t offset;         // of the tile
  const float* grad_sum;  // of the tile; null: these gradients are not summed up
  const Row& row;         // read only where there is a sum
  float unscale;

  __device__ __forceinline__ float at(int i) const {
    float g[1] = {};
    if (grad) read_floats<1>(dtype, grad, offset + i, g);
    g[0] *= unscale;
    return grad_sum ? mean_gradient(row, load1(grad_sum + i), g[0]) : g[0];
  }
};

__device__ __forceinline__ void read_entries(Dtype dtype, const EffectiveGradient& x,
                                             float (&loaded)[kLaneEntries][4]) {
#pragma unroll
  for (int k = 0; k < kLaneEntries; ++k) {
    read_floats<4>(dtype, x.grad, x.offset + 4 * (kLanes * k + static_cast<int>(threadIdx.x)), loaded[k]);
  }
}

__device__ __forceinline__ void add_tile(const EffectiveGradient& x, int count, SquaresScratch& scratch,
                                         ExactSum& sum) {
  if (count < kTileElements || x.grad_sum || (x.grad & 15) != 0 || x.offset % 16 != 0) {
    const auto visit = [&](const auto& take) {
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < count; i += kLanes) take(x.at(i));
    };
    add_squares(thread_now(), visit, scratch, sum);
    return;
  }
  float loaded[kLaneEntries][4];
  // branch once on the dtype, so that all loads are in flight before the first use
  if (x.dtype == kFloat32) {
    read_entries(kFloat32, x, loaded);
  } else if (x.dtype == kBfloat16) {
    read_entries(kBfloat16, x, loaded);
  } else {
    read_entries(kFloat16, x, loaded);
  }
#pragma unroll
  for (int i = 0; i < 4 * kLaneEntries; ++i) loaded[i / 4][i % 4] *= x.unscale;
  const auto visit = [&](const auto& take) {
#pragma unroll
    for (int i = 0; i < 4 * kLaneEntries; ++i) take(loaded[i / 4][i % 4]);
  };
  add_squares(thread_now(), visit, scratch, sum);
}

// Adds nothing if the gradient moves nothing now, unless infinities are looked for.
__device__ __forceinline__ void add_gradient(const StatisticsArgs& args, const Tile& tile, const Record& record,
                                             SquaresScratch& scratch, ExactSum& sum) {
  const Turn turn = turn_of(args, tile.record, record);
  const bool moves = turn.moves(record.grad != 0);
  if (!is_read(args, record.grad != 0, moves)) return;
  const float* grad_sum = nullptr;
  if (moves && turn.sums() && record.grad_sum) grad_sum = reinterpret_cast<const float*>(record.grad_sum) + tile.offset;
  const EffectiveGradient gradient = {record.grad, record.grad_dtype,     tile.offset,
                                      grad_sum,    args.rows[record.row], unscaling(args, moves)};
  add_tile(gradient, tile.count, scratch, sum);
}

__global__ void __launch_bounds__(kLanes, kBlocksPerMultiprocessorOfStatistics) statistics_kernel(StatisticsArgs args) {
  __shared__ SquaresScratch scratch;
  __shared__ ExactSum totals[2];
  __shared__ double rounded[2];
  __shared__ bool is_last;
  const int64_t t = args.first_tile + blockIdx.x;
  const Tile tile = args.tiles[t];
  const Record record = args.records[tile.record];
  // an absent gradient adds nothing, but its block has to be counted
  add_gradient(args, tile, record, scratch, args.sums[2 * (t % kSumCopies) + player_of(args, t)]);
  __syncthreads();
  const int thread = thread_now();
  if (thread == 0) {
    __threadfence();  // orders what the block has added before the count
    is_last = atomicAdd(&args.statistics->blocks_done, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!is_last) return;
  // Orders the count before the loads of what other blocks have added; in every thread, and as a fence of sequential
  // consistency, see report_tile() in block.cuh.
  __threadfence();
  for (int player = 0; player < 2; ++player) {
    collect_copies(thread - player * kExactSumWords, args.sums + player, 2, totals[player]);
  }
  __syncthreads();
  if (thread < 2) rounded[thread] = conclude_sum(totals[thread], args.digits + thread * kHostWords);
  __syncthreads();
  if (thread) return;
  conclude(args, rounded[0], rounded[1]);
  args.statistics->blocks_done = 0;
}

// What follows from digits that are there already, those of several tables or ranks.
__global__ void __launch_bounds__(32) conclude_kernel(StatisticsArgs args) {
  __shared__ double rounded[2];
  const int thread = thread_now();
  if (thread < 2) {
    int64_t* words = args.digits + thread * kHostWords;
    ExactSum sum = read_sum(words);
    rounded[thread] = conclude_sum(sum, words);
  }
  __syncthreads();
  if (!thread) conclude(args, rounded[0], rounded[1]);
}

const char* launch_statistics(const StatisticsArgs& args, int device, int64_t stream) {
  if (const cudaError_t error = cudaSetDevice(device)) return cudaGetErrorString(error);
  SF_LAUNCH(statistics_kernel, static_cast<unsigned>(args.num_tiles), kLanes, stream, args);
  return launch_error();
}

const char* launch_conclude(const StatisticsArgs& args, int device, int64_t stream) {
  if (const cudaError_t error = cudaSetDevice(device)) return cudaGetErrorString(error);
  SF_LAUNCH(conclude_kernel, 1, 32, stream, args);
  return launch_error();
}

}  // namespace sf
