// SF_HOST_DEVICE marks functions that the CPU and CUDA kernels share, with the same bits as results: contraction is off
// in both compilers, and square roots and quotients are IEEE's.
//
// The functions have internal linkage on purpose. The CPU kernel is compiled once per instruction set, and a shared
// inline symbol would let the linker hand AVX-512 code to a machine without it.
#pragma once

#if defined(__CUDACC__)
#define SF_HOST_DEVICE static __host__ __device__ __forceinline__
#define SF_HOST_DEVICE_MEMBER __host__ __device__ __forceinline__
#else
#define SF_HOST_DEVICE static inline __attribute__((always_inline))
#define SF_HOST_DEVICE_MEMBER inline __attribute__((always_inline))
#endif

namespace sf {

constexpr double kNoLimit = __builtin_huge_val();

SF_HOST_DEVICE double root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

}  // namespace sf
