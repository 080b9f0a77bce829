// The memory floor of a float32 Adam step, for the benchmarks: a loop that moves the same 28 bytes per element and
// computes next to nothing.
#pragma once

#include <cstdint>

namespace sf {

// Reads four arrays and writes three of them, each element once.
using StreamAdam = void (*)(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t count);

struct BandwidthProbe {
  const char* isa;
  StreamAdam stream_adam;
};

#if SF_X86
extern const BandwidthProbe bandwidth_probe_avx512, bandwidth_probe_avx2;
#endif
extern const BandwidthProbe bandwidth_probe_baseline;

}  // namespace sf
