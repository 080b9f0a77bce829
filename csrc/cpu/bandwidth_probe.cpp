// Compiled once per instruction set, as the step is that it is compared with: both move memory by the same vectors.
#include "cpu/bandwidth_probe.h"

#include "cpu/dispatch.h"

namespace sf {
namespace {

void stream_adam(float* __restrict param, const float* __restrict grad, float* __restrict exp_avg,
                 float* __restrict exp_avg_sq, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = grad[i];
    param[i] += g;
    exp_avg[i] += g;
    exp_avg_sq[i] += g;
  }
}

}  // namespace

extern const BandwidthProbe SF_ISA_NAME(bandwidth_probe_) = {SF_ISA_STRING, stream_adam};

}  // namespace sf
