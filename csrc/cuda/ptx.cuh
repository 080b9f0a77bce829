// All inline PTX: single instructions that CUDA C++ has no name for, or that the compiler would not choose by itself.
// Callers have the same in C++ beside each call, for the host.
#pragma once

#include <cstdint>

namespace sf::ptx {

// Makes the compiler forget the value. It would otherwise duplicate all code that follows, once for each outcome of a
// comparison made before. It emits no instruction, and works on the host too.
__device__ __forceinline__ void forget_value(int& x) { asm volatile("" : "+r"(x)); }

#if defined(__CUDA_ARCH__)

// `a` where the sign bit of `sign` is clear, else `b`. A conditional expression becomes a branch, and the code after it
// is duplicated; this instruction selects between registers.
__device__ __forceinline__ float select_by_sign(float a, float b, float sign) {
  float selected;
  asm("slct.f32.s32 %0, %1, %2, %3;" : "=f"(selected) : "f"(a), "f"(b), "r"(__float_as_int(sign)));
  return selected;
}

// 1 / x by the special function unit, off by one ulp or so; the seed of a Newton iteration. __frcp_rn iterates by
// itself.
__device__ __forceinline__ float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Likewise 1 / sqrt(x). rsqrtf() becomes the same instruction only with -ftz=true, and scales its operand otherwise.
__device__ __forceinline__ float approximate_reciprocal_root(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger operand; NaN if either is NaN, where fmaxf() gives the other one.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
}

// The k-th byte of a word, sign-extended and shifted left by 8. __byte_perm cannot replicate a sign: it reads only
// three bits of each digit of the selector, and the fourth bit asks for the sign.
__device__ __forceinline__ uint32_t signed_byte_shifted(uint32_t word, int k) {
  uint32_t shifted;
  const int sign = 8 + k;
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(shifted) : "r"(word), "r"(sign << 12 | sign << 8 | k << 4 | 4));
  return shifted;
}

#endif

}  // namespace sf::ptx
