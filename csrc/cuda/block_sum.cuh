// Sums by a block of kLanes threads, in the order of csrc/summation.h.
#pragma once

#include "summation.h"

namespace sf {

constexpr int kWarp = 32;
static_assert(kLanes % kWarp == 0 && (kLanes & (kLanes - 1)) == 0);

// Adds the upper half of the lanes to the lower half until lane 0 holds the sum; other lanes return part of it. Every
// thread of the block has to call it, and synchronize before `shared` is written again.
__device__ __forceinline__ double sum_lanes(double sum, double* shared) {
  const int lane = static_cast<int>(threadIdx.x);
  shared[lane] = sum;
  __syncthreads();
#pragma unroll
  for (int half = kLanes / 2; half > kWarp; half /= 2) {
    if (lane < half) shared[lane] = sum = sum + shared[lane + half];
    __syncthreads();
  }
  if (lane < kWarp) {
    sum += shared[lane + kWarp];
#pragma unroll
    for (int half = kWarp / 2; half; half /= 2) sum += __shfl_down_sync(0xffffffffu, sum, half);
  }
  return sum;
}

}  // namespace sf
