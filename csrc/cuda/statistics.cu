// Gradient statistics in one launch: block b sums the squares of tile first_tile + b, and the last block to finish adds
// up the tiles. The additions are in the order of csrc/summation.h, so the result does not depend on which block is
// last.
#include "cuda/launch.cuh"

#include "cuda/access.cuh"
#include "cuda/block_sum.cuh"
#include "cuda/load_store.cuh"
#include "cuda/step.h"
#include "summation.h"
#include "turn.h"
#include "update_rule.h"

namespace sf {

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

__device__ __forceinline__ double lane_sum(const EffectiveGradient& x, int64_t left) {
  if (left < kTileElements || x.grad_sum || (x.grad & 15) != 0) {
    return lane_sum_of_tile(left, [&](int i) { return x.at(i); });
  }
  double part[4];
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
  for (int k = 0; k < kLaneEntries; ++k) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const double squared = square(x.unscale * loaded[k][j]);
      part[j] = k ? part[j] + squared : squared;
    }
  }
  return add_parts(part);
}

// The sum of a lane; 0 if the gradient moves nothing now, unless infinities are looked for.
__device__ __forceinline__ double lane_sum_of_gradient(const StatisticsArgs& args, const Tile& tile,
                                                       const Record& record) {
  const Turn turn = turn_of(args, tile.record, record);
  const bool moves = turn.moves(record.grad != 0);
  if (!is_read(args, record.grad != 0, moves)) return 0.0;
  const float* grad_sum = nullptr;
  if (moves && turn.sums() && record.grad_sum) grad_sum = reinterpret_cast<const float*>(record.grad_sum) + tile.offset;
  const EffectiveGradient gradient = {record.grad, record.grad_dtype,     tile.offset,
                                      grad_sum,    args.rows[record.row], unscaling(args, moves)};
  return lane_sum(gradient, record.numel - tile.offset);
}

__global__ void __launch_bounds__(kLanes) statistics_kernel(StatisticsArgs args) {
  __shared__ double shared[kLanes];
  __shared__ bool is_last;
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t t = args.first_tile + blockIdx.x;
  const Tile tile = args.tiles[t];
  const Record record = args.records[tile.record];
  // an absent gradient adds nothing, but its block has to be counted
  const double sum = sum_lanes(lane_sum_of_gradient(args, tile, record), shared);
  if (lane == 0) {
    args.tile_sums[t] = sum;
    __threadfence();  // orders the sum before the count
    is_last = atomicAdd(&args.statistics->blocks_done, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();  // orders the count before the loads of other blocks' sums
  double sums[2];
  for (int player = 0; player < 2; ++player) {
    int64_t begin, end;
    player_tiles(args, player, begin, end);
    sums[player] = sum_lanes(lane_sum_of_entries(args.tile_sums, begin, end), shared);
  }
  if (lane) return;
  conclude(args, sums[0], sums[1]);
  args.statistics->blocks_done = 0;
}

const char* launch_statistics(const StatisticsArgs& args, int device, int64_t stream) {
  if (const cudaError_t error = cudaSetDevice(device)) return cudaGetErrorString(error);
  SF_LAUNCH(statistics_kernel, static_cast<unsigned>(args.num_tiles), kLanes, stream, args);
  return launch_error();
}

}  // namespace sf
