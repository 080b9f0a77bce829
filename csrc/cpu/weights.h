// Reads and writes a chunk of weights in any format: the parameter, and what its scheme stores beside it. Part of
// step.cpp, and compiled with it for each instruction set.
#pragma once

#include "codec.h"
#include "cpu/chunk.h"
#include "format.h"
#include "tables.h"

namespace sf {
namespace {

// Reads the weights in float32, from the parameters and what is stored beside them.
inline void read_weights(const Record& record, const Format& format, int64_t offset, int64_t count,
                         float* __restrict weight) {
  if (format.master == kSplit16) {
    const uint16_t* __restrict part = pointer<const uint16_t>(record.param, offset);
    const int16_t* __restrict remainder = pointer<const int16_t>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) weight[i] = join<16>(part[i], remainder[i]);
    return;
  }
  if (format.master == kSplit8) {
    const uint16_t* __restrict part = pointer<const uint16_t>(record.param, offset);
    const int8_t* __restrict remainder = pointer<const int8_t>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) weight[i] = join<8>(part[i], remainder[i]);
    return;
  }
  read_floats(format.param, record.param, offset, count, weight);
  if (format.master == kKahan) {
    float lost[kChunk];
    read_floats(format.param, record.master, offset, count, lost);
    for (int64_t i = 0; i < count; ++i) weight[i] = compensated(weight[i], lost[i], format.param == kBfloat16);
  } else if (format.master == kMaster32) {
    // if someone has changed the parameter since, it counts and not the master weight
    const uint16_t* __restrict param = pointer<const uint16_t>(record.param, offset);
    const float* __restrict master = pointer<const float>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t rounded = format.param == kBfloat16 ? to_bfloat16(master[i]) : to_float16(master[i]);
      weight[i] = rounded == param[i] ? master[i] : weight[i];
    }
  }
}

inline void write_weights(const Record& record, const Format& format, int64_t offset, int64_t count,
                          const float* __restrict weight, const uint32_t* __restrict random) {
  uint16_t* __restrict param = pointer<uint16_t>(record.param, offset);
  switch (format.master) {
    case kStochastic:
      if (format.param == kBfloat16) {
        for (int64_t i = 0; i < count; ++i) param[i] = to_bfloat16(weight[i], random[i]);
      } else {
        for (int64_t i = 0; i < count; ++i) param[i] = to_float16(weight[i], random[i]);
      }
      return;
    case kSplit16: {
      int16_t* __restrict remainder = pointer<int16_t>(record.master, offset);
      for (int64_t i = 0; i < count; ++i) {
        const Split found = split<16>(weight[i]);
        param[i] = found.part, remainder[i] = found.remainder;
      }
      return;
    }
    case kSplit8: {
      int8_t* __restrict remainder = pointer<int8_t>(record.master, offset);
      for (int64_t i = 0; i < count; ++i) {
        const Split found = split<8>(weight[i]);
        param[i] = found.part, remainder[i] = static_cast<int8_t>(found.remainder);
      }
      return;
    }
  }
  write_floats(format.param, weight, record.param, offset, count);
  if (format.master == kKahan) {
    float stored[kChunk], lost[kChunk];
    read_floats(format.param, record.param, offset, count, stored);
    for (int64_t i = 0; i < count; ++i) lost[i] = compensation(weight[i], stored[i]);
    write_floats(format.param, lost, record.master, offset, count);
  } else if (format.master == kMaster32) {
    float* __restrict master = pointer<float>(record.master, offset);
    for (int64_t i = 0; i < count; ++i) master[i] = weight[i];
  }
}

}  // namespace
}  // namespace sf
