// Projections onto sets that many elements share, in double precision, and rounded towards zero. The host's
// stackelberg_fused/numerics/projection.py and triton_kernels/project.py say the same; a box is in update_rule.h.
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
    uint32_t bits;  // sign and magnitude: one less is one nearer to zero
    __builtin_memcpy(&bits, &near, sizeof(bits));
    --bits;
    __builtin_memcpy(&near, &bits, sizeof(near));
  }
  return near;
#endif
}

// What elements are multiplied by to be in a ball: 1 where they are, or are not finite.
SF_HOST_DEVICE double ball_factor(const JointSet& set, double sum_of_squares) {
  const double norm = root(sum_of_squares);
  return norm <= set.largest || !(norm < kNoLimit) ? 1.0 : set.size / norm;
}

SF_HOST_DEVICE float on_ball(float x, double factor) {
  return factor == 1.0 ? x : toward_zero(static_cast<double>(x) * factor);
}

// Rows of a simplex that one block, or one call, takes: about as many elements as a tile has.
SF_HOST_DEVICE int64_t rows_per_piece(int64_t length) { return length < kTileElements ? kTileElements / length : 1; }

// Where row `index` of a parameter begins: rows are `stride` elements apart as long as they interleave.
SF_HOST_DEVICE int64_t row_start(const Record& record, int64_t index) {
  return index + index / record.row_stride * record.row_stride * (record.row_length - 1);
}

// Whether a row stays as it is: it is in the simplex, or its sum is not finite, and so one of its elements.
SF_HOST_DEVICE bool row_stays(const JointSet& set, double smallest, double sum) {
  return sum - sum != 0.0 || (smallest >= 0.0 && set.smallest <= sum && sum <= set.largest);
}

// Narrows down which elements of a row stay above zero (Michelot 1986). Elements are relative to the row's largest, or
// the total would be lost beside large ones; so all above `threshold`, which is below zero, are kept.
struct Threshold {
  double value, kept;

  // of all elements that could be kept
  SF_HOST_DEVICE_MEMBER explicit Threshold(double total) : value(-total), kept(kNoLimit) {}
  // From how many elements are above it, and their sum; false when they are those that were above the last one.
  SF_HOST_DEVICE_MEMBER bool narrow(double total, double count, double sum) {
    if (!(count < kept)) return false;
    value = (sum - total) / count;
    kept = count;
    return true;
  }
};

// What an element keeps before the row is scaled to its total to the last bit.
SF_HOST_DEVICE double above(double relative, double threshold) {
  return relative > threshold ? relative - threshold : 0.0;
}

}  // namespace sf
