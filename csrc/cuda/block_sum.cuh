// Sums by a block of kLanes threads, in the order of csrc/summation.h.
#pragma once

#include "cuda/access.cuh"
#include "summation.h"

namespace sf {

constexpr int kWarp = 32;
static_assert(kLanes % kWarp == 0 && (kLanes & (kLanes - 1)) == 0);

// Adds the upper half of the lanes to the lower half until lane 0 holds the sum; other lanes return part of it. Every
// thread of the block has to call it.
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

// The sum of the squares of a lane's elements of a tile; at(i) is element i of `count`.
template <typename At>
__device__ __forceinline__ double lane_sum_of_tile(int64_t count, At at) {
  double part[4];
  for (int j = 0; j < 4; ++j) {
    part[j] = 0;
    for (int i = 4 * static_cast<int>(threadIdx.x) + j; i < kTileElements && i < count; i += 4 * kLanes) {
      part[j] += square(at(i));
    }
  }
  return add_parts(part);
}

// The sum of a lane's entries in [begin, end). Other blocks wrote them, so the loads bypass the first-level cache,
// which is not coherent with those stores.
__device__ __forceinline__ double lane_sum_of_entries(const double* sums, int64_t begin, int64_t end) {
  double mine = 0;
  for (int64_t i = begin + static_cast<int>(threadIdx.x); i < end; i += kLanes) mine += __ldcg(sums + i);
  return mine;
}

}  // namespace sf
