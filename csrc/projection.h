// Projections onto sets that many elements share, in double precision and rounded towards zero: balls and simplices. A
// box belongs to the update (update_rule.h). stackelberg_fused/numerics/projection.py and triton_kernels/project.py
// compute the same.
#pragma once

#include "host_device.h"
#include "summation.h"
#include "tables.h"

namespace sf {

SF_HOST_DEVICE float toward_zero(double x) {
#if defined(__CUDA_ARCH__)
  return __double2float_rz(x);
#else
  float near = static_cast<float>(x);
  const double magnitude = x < 0 ? -x : x, found = near < 0 ? -static_cast<double>(near) : static_cast<double>(near);
  if (found > magnitude) {
    uint32_t bits;  // one less is the next float towards zero
    __builtin_memcpy(&bits, &near, sizeof(bits));
    --bits;
    __builtin_memcpy(&near, &bits, sizeof(near));
  }
  return near;
#endif
}

// The factor that brings elements into a ball; 1 where they are inside, or not all finite.
SF_HOST_DEVICE double ball_factor(const JointSet& set, double sum_of_squares) {
  const double norm = root(sum_of_squares);
  return norm <= set.largest || !(norm < kNoLimit) ? 1.0 : set.size / norm;
}

SF_HOST_DEVICE float on_ball(float x, double factor) {
  return factor == 1.0 ? x : toward_zero(static_cast<double>(x) * factor);
}

// The first element of row `index` of a parameter. `row_stride` rows interleave, each with its elements that far apart;
// the next group of rows follows them.
SF_HOST_DEVICE int64_t row_start(const Record& record, int64_t index) {
  return index + index / record.row_stride * record.row_stride * (record.row_length - 1);
}

// True where a row needs no projection: it is in the simplex, or one of its elements is not finite, hence its sum.
SF_HOST_DEVICE bool row_stays(const JointSet& set, double smallest, double sum) {
  return sum - sum != 0.0 || (smallest >= 0.0 && set.smallest <= sum && sum <= set.largest);
}

// The threshold of a row, which is subtracted from its elements: those below it become zero. It rises until the
// elements above it, the support, no longer change (Michelot 1986). Elements are taken relative to the row's largest,
// because the total would be lost beside large elements; so the threshold is negative.
struct Threshold {
  double value, support;

  // The support is unknown yet: it may be all elements.
  SF_HOST_DEVICE_MEMBER explicit Threshold(double total) : value(-total), support(kNoLimit) {}
  // Raises the threshold, given the number and the sum of the elements above it. Returns false when the support is
  // final.
  SF_HOST_DEVICE_MEMBER bool raise(double total, double count, double sum) {
    if (!(count < support)) return false;
    value = (sum - total) / count;
    support = count;
    return true;
  }
};

// An element after the threshold is subtracted, before the row is scaled to its exact total.
SF_HOST_DEVICE double above(double relative, double threshold) {
  return relative > threshold ? relative - threshold : 0.0;
}

}  // namespace sf
