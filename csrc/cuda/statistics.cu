// Gradient statistics in one launch: block b sums up tile first_tile + b, and the block that is done last adds up the
// tiles. The order of the additions is that of csrc/summation.h, so it does not matter which block that is.
#include "cuda/launch.cuh"

#include "cuda/access.cuh"
#include "cuda/step.h"
#include "summation.h"

namespace sf {

constexpr int kWarp = 32;
static_assert(kLanes % kWarp == 0 && (kLanes & (kLanes - 1)) == 0);

// The upper half of the lanes onto the lower, until lane 0 holds the sum. Every thread of the block calls it.
__device__ __forceinline__ double sum_lanes(double sum, double* shared) {
  const int lane = static_cast<int>(threadIdx.x);
  shared[lane] = sum;
  __syncthreads();
#pragma unroll
  for (int half = kLanes / 2; half >= kWarp; half /= 2) {
    if (lane < half) shared[lane] = sum = sum + shared[lane + half];
    __syncthreads();
  }
  if (lane < kWarp) {
#pragma unroll
    for (int half = kWarp / 2; half; half /= 2) sum += __shfl_down_sync(0xffffffffu, sum, half);
  }
  return sum;
}

__device__ __forceinline__ double lane_sum(const Record& record, int64_t offset) {
  const int lane = static_cast<int>(threadIdx.x);
  const float* grad = reinterpret_cast<const float*>(record.grad) + offset;
  const int64_t left = record.numel - offset;
  double part[4];
  if (left >= kTileElements && (record.grad & 15) == 0) {
    float4 loaded[kLaneEntries];
#pragma unroll
    for (int k = 0; k < kLaneEntries; ++k) loaded[k] = load4(grad + 4 * (kLanes * k + lane));
#pragma unroll
    for (int k = 0; k < kLaneEntries; ++k) {
      const double x = square(loaded[k].x), y = square(loaded[k].y), z = square(loaded[k].z), w = square(loaded[k].w);
      part[0] = k ? part[0] + x : x;
      part[1] = k ? part[1] + y : y;
      part[2] = k ? part[2] + z : z;
      part[3] = k ? part[3] + w : w;
    }
  } else {
    for (int j = 0; j < 4; ++j) {
      part[j] = 0;
      for (int i = 4 * lane + j; i < kTileElements && i < left; i += 4 * kLanes) part[j] += square(load1(grad + i));
    }
  }
  return add_parts(part);
}

__global__ void __launch_bounds__(kLanes) statistics_kernel(StatisticsArgs args) {
  __shared__ double shared[kLanes];
  __shared__ bool is_last;
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t t = args.first_tile + blockIdx.x;
  const Tile tile = args.tiles[t];
  const Record record = args.records[tile.record];
  // a gradient that is absent adds nothing; its block still counts as done
  const double sum = sum_lanes(record.grad ? lane_sum(record, tile.offset) : 0.0, shared);
  if (lane == 0) {
    args.tile_sums[t] = sum;
    __threadfence();  // the sum before the count
    is_last = atomicAdd(&args.signals->blocks_done, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();  // the count before the other blocks' sums
  double sums[2];
  for (int player = 0; player < 2; ++player) {
    int64_t begin, end;
    player_tiles(args, player, begin, end);
    double mine = 0;
    // past the first-level cache, which other blocks' stores do not reach
    for (int64_t i = begin + lane; i < end; i += kLanes) mine += __ldcg(args.tile_sums + i);
    sums[player] = sum_lanes(mine, shared);
  }
  if (lane) return;
  conclude(args, sums[0], sums[1]);
  args.signals->blocks_done = 0;
}

const char* launch_statistics(const StatisticsArgs& args, int device, int64_t stream) {
  if (const cudaError_t error = cudaSetDevice(device)) return cudaGetErrorString(error);
  SF_LAUNCH(statistics_kernel, static_cast<unsigned>(args.num_tiles), kLanes, stream, args);
  return launch_error();
}

}  // namespace sf
