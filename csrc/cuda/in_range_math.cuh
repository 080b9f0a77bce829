// Shorter ways to the same bits, for numbers of which it is checked once, together, what csrc/codec.h and the compiler
// look for in each. Where 8-bit moments make the bytes few, the instructions are what a step takes.
#pragma once

#include <cmath>

#include "codec.h"
#include "update_rule.h"

// On the host seeds are correctly rounded, unless a test makes something else of them.
#ifndef SF_SEED
#define SF_SEED(x) (x)
#endif

namespace sf {

// Approximations by the unit that has them, off by an ulp or so.
__device__ __forceinline__ float seed_of_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float found;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
#else
  return SF_SEED(1.0f / x);
#endif
}

__device__ __forceinline__ float seed_of_reciprocal_root(float x) {
#if defined(__CUDA_ARCH__)
  float found;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(found) : "f"(x));
  return found;
#else
  return SF_SEED(static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))));
#endif
}

// Ieee's bits, by the very steps into which the compiler makes a root and a quotient whose operands it has found to be
// neither very large nor very small: that they are not is for the caller to know. From the seeds that the processor has
// for the compiler too: an even power of two, by which the square is multiplied, changes no more than their exponents.
// They may be an ulp off (the tests vary them), not much more. NaN where the denominator is zero.
struct Usual : Ieee {
  static constexpr float kSmallest = 0x1p-100f;     // that a first moment other than zero may be
  static constexpr float kLargest = 0x1p15f;        // that it may be, so that its factors below are finite
  static constexpr float kLargestSecond = 0x1p31f;  // and a second moment
  static constexpr float kLargestEps = 0x1p16f;

  __device__ __forceinline__ static float ratio(float exp_avg, float second_moment, float eps) {
    // the root of a zero, and of what is subnormal, without a branch: of 2^64 times as much, but for the seed of zero's
    const float scaled = second_moment * 0x1p64f, seed = seed_of_reciprocal_root(scaled + 0x1p-126f);
    const float near = scaled * seed, half = 0.5f * seed;
    const float root = fused_multiply_add(fused_multiply_add(-near, near, scaled), half, near);
    const float denom = fused_multiply_add(root, 0x1p-32f, eps);
    const float rough = seed_of_reciprocal(denom);
    const float inverse = fused_multiply_add(fused_multiply_add(-denom, rough, 1.0f), rough, rough);
    const float quotient = exp_avg * inverse;
    // the remainder with its sign turned, twice: or a negative zero would become a positive one
    return fused_multiply_add(fused_multiply_add(denom, quotient, -exp_avg), -inverse, quotient);
  }
};

// A code's fields, where a float32 has its own, are one but for a power of two: also where both are subnormal, as
// numbers like any other to this processor.
template <typename CODE>
constexpr float kUnit = CODE::one == 15 ? 0x1p-112f : 0x1p-96f;

// What float32 fields of codes are multiplied by; infinity for scales that are not usual, whose codes then become
// infinite or NaN.
template <typename CODE>
__device__ __forceinline__ float decoding(float scale) {
  return scale * (1.0f / kUnit<CODE>);
}

template <typename CODE>
__device__ __forceinline__ float encoding(uint8_t scale) {
  return inverse_scale(scale) * kUnit<CODE>;
}

// Of a word of codes the k-th, none of which is of infinity or NaN.
template <typename CODE>
__device__ __forceinline__ float decode_usual(uint32_t codes, int k, float by) {
  if constexpr (CODE::is_signed) {
    const auto top = static_cast<int32_t>(codes << (24 - 8 * k));
    return float_of(static_cast<uint32_t>(top >> 4) & 0x87F00000) * by;
  }
  return float_of((k < 3 ? codes << (20 - 8 * k) : codes >> 4) & 0x0FF00000) * by;
}

// The code is in the upper byte, but that of a second moment may be zero where the moment is not. `random` is shifted
// to the left by 8.
template <typename CODE>
__device__ __forceinline__ uint32_t encode_usual(float x, float by, uint32_t random) {
  const uint32_t code = bits_of(x * by) * 16 + random;
  return CODE::is_signed ? (code & kMagnitude) | (bits_of(x) & ~kMagnitude) : code;
}

// Whether there are codes of infinity or NaN among four in a word: what is true in the upper bit of any byte.
template <typename CODE>
__device__ __forceinline__ uint32_t special_bytes(uint32_t codes) {
  const uint32_t upper = CODE::is_signed ? codes & 0x7F7F7F7F : codes >> 1 & 0x7F7F7F7F;
  return (upper + (CODE::is_signed ? 0x02020202 : 0x01010101)) & 0x80808080;
}

template <typename CODE, int N>
__device__ __forceinline__ uint32_t special_codes(const uint32_t (&codes)[N]) {
  uint32_t found = 0;
#pragma unroll
  for (int w = 0; w < N; ++w) found |= special_bytes<CODE>(codes[w]);
  return found;
}

// The larger magnitude; what is not a number is larger than any.
__device__ __forceinline__ float larger_or_nan(float largest, float x) {
#if defined(__CUDA_ARCH__)
  float found;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(found) : "f"(largest), "f"(fabsf(x)));
  return found;
#else
  const uint32_t magnitude = bits_of(x) & kMagnitude;
  return magnitude > bits_of(largest) ? float_of(magnitude) : largest;
#endif
}

// The k-th byte of a word, signed, times 256.
__device__ __forceinline__ uint32_t signed_byte_above(uint32_t word, int k) {
#if defined(__CUDA_ARCH__)
  uint32_t found;
  const int digit = 8 + k;  // that names the byte's sign
  asm("prmt.b32 %0, %1, 0, %2;" : "=r"(found) : "r"(word), "r"(digit << 12 | digit << 8 | k << 4 | 4));
  return found;
#else
  return static_cast<uint32_t>(static_cast<int8_t>(word >> 8 * k)) << 8;
#endif
}

}  // namespace sf
