// Sums of the rows of a simplex, in double and in one order: each of kLanes lanes adds up every kLanes-th entry, then
// the upper half of the lanes is added to the lower half until one lane is left. Sums of squares are exact instead
// (exact_sum.h).
#pragma once

#include <cstdint>

#include "host_device.h"

namespace sf {

constexpr int kLanes = 256;

#if !defined(__CUDA_ARCH__)
// Adds the upper half of the lanes to the lower half until one is left; `width` is a power of two.
SF_HOST_DEVICE double fold_lanes(double* lanes, int width = kLanes) {
  for (int half = width / 2; half; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// The sum of at(0) to at(count - 1). Lanes without an entry would add zeros, and are left out.
template <typename At>
SF_HOST_DEVICE double sum_in_lanes(int64_t count, At at) {
  double lanes[kLanes];
  int width = 1;
  while (width < kLanes && width < count) width *= 2;
  for (int lane = 0; lane < width; ++lane) lanes[lane] = 0;
  for (int64_t i = 0; i < count; ++i) lanes[i & (kLanes - 1)] += at(i);
  return fold_lanes(lanes, width);
}
#endif

}  // namespace sf
