// Compiled without any instruction set beyond the baseline, because it decides which of them may run.
#include "cpu/dispatch.h"

#include <cstddef>
#include <cstring>

#include "cpu/bandwidth_probe.h"
#include "cpu/step.h"

namespace sf {
namespace {

bool runs_here(const char* isa) {
#if SF_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!std::strcmp(isa, "avx2")) return avx2;
  if (!std::strcmp(isa, "avx512")) {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return !std::strcmp(isa, "baseline");
}

// `candidates`: widest first.
template <typename T, std::size_t N>
const T* select(const T* const (&candidates)[N], const char* isa) {
  const bool any = !isa || !*isa;
  for (const T* candidate : candidates) {
    if ((any || !std::strcmp(isa, candidate->isa)) && runs_here(candidate->isa)) return candidate;
  }
  return nullptr;
}

}  // namespace

const Kernel* select_kernel(const char* isa) {
  static constexpr const Kernel* kKernels[] = {
#if SF_X86
      &kernel_avx512, &kernel_avx2,
#endif
      &kernel_baseline};
  return select(kKernels, isa);
}

const BandwidthProbe& select_bandwidth_probe() {
  static constexpr const BandwidthProbe* kProbes[] = {
#if SF_X86
      &bandwidth_probe_avx512, &bandwidth_probe_avx2,
#endif
      &bandwidth_probe_baseline};
  return *select(kProbes, nullptr);
}

}  // namespace sf
