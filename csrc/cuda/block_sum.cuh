// Sums in the order of csrc/summation.h by a block of kLanes threads.
#pragma once

#include "cuda/access.cuh"
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

// The squares of a lane's elements of a tile; `at` gives element i of `count`, singly.
template <typename At>
__device__ __forceinline__ double lane_of_tile(int64_t count, At at) {
  double part[4];
  for (int j = 0; j < 4; ++j) {
    part[j] = 0;
    for (int i = 4 * static_cast<int>(threadIdx.x) + j; i < kTileElements && i < count; i += 4 * kLanes) {
      part[j] += square(at(i));
    }
  }
  return add_parts(part);
}

// Of the entries [begin, end), which other blocks wrote: past the first-level cache, which their stores do not reach.
__device__ __forceinline__ double lane_of_sums(const double* sums, int64_t begin, int64_t end) {
  double mine = 0;
  for (int64_t i = begin + static_cast<int>(threadIdx.x); i < end; i += kLanes) mine += __ldcg(sums + i);
  return mine;
}

}  // namespace sf
