#include <cstring>

#include "cpu/step.h"

namespace sf {

const Kernel* select_kernel(const char* isa) {
  const bool any = !isa || !*isa;
#if SF_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && (any || !std::strcmp(isa, "avx512"))) return &kernel_avx512;
  if (avx2 && (any || !std::strcmp(isa, "avx2"))) return &kernel_avx2;
#endif
  if (any || !std::strcmp(isa, "baseline")) return &kernel_baseline;
  return nullptr;
}

}  // namespace sf
