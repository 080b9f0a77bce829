// The storage format of a record, unpacked from its `format` word (stackelberg_fused/groups/schemes.py packs it).
#pragma once

#include <cstdint>

#include "codec.h"
#include "host_device.h"
#include "tables.h"

namespace sf {

struct Format {
  int32_t param;   // Dtype
  int32_t state;   // StateKind
  int32_t master;  // Master
};

SF_HOST_DEVICE Format format_of(int64_t word) {
  return {static_cast<int32_t>(word & 3), static_cast<int32_t>(word >> 2 & 3), static_cast<int32_t>(word >> 4 & 7)};
}

SF_HOST_DEVICE bool uses_random_bits(const Format& format) {
  return format.state != kState32 || format.master == kStochastic;
}

// The block of 8-bit codes that has element `index` of a parameter.
SF_HOST_DEVICE int64_t block_of(const Record& record, int64_t index) {
  if (!record.block_row) return index / kBlock;
  const int64_t blocks_per_row = (record.block_row + kBlock - 1) / kBlock;
  return index / record.block_row * blocks_per_row + index % record.block_row / kBlock;
}

SF_HOST_DEVICE int64_t bytes_of(int64_t dtype) { return dtype == kFloat32 ? 4 : 2; }

// One end of an interval, rounded to a number of the dtype that lies inside: `low` rounds up, `high` down.
SF_HOST_DEVICE float rounded_inside(float bound, int32_t dtype, bool up) {
  const bool is_infinite = (bits_of(bound) & kMagnitude) >= kInfinity;
  if (dtype == kFloat32 || is_infinite || bound == 0.0f) return bound;
  const bool outward = up == (bound > 0.0f);  // away from zero
  const float largest = dtype == kBfloat16 ? 0x1.FEp127f : 65504.0f;
  if (!outward && float_of(bits_of(bound) & kMagnitude) >= largest) return bound > 0.0f ? largest : -largest;
  const float toward = dtype == kBfloat16 ? float_of(bits_of(bound) & ~0xFFFFu) : from_float16(to_float16(bound, 0));
  if (toward == bound || !outward) return toward;
  const float magnitude = float_of(bits_of(toward) & kMagnitude);
  const uint32_t step = dtype == kBfloat16 ? 0x10000 : 0x2000;
  const float next =
      dtype == kFloat16 && magnitude < 0x1p-14f ? magnitude + 0x1p-24f : float_of(bits_of(magnitude) + step);
  return bound > 0.0f ? next : -next;
}

}  // namespace sf
