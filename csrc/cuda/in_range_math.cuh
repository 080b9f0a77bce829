// A codec, a square root and a quotient in fewer instructions, with the same bits as csrc/codec.h and IEEE arithmetic
// for numbers in a range. Callers check the range once for all numbers of a thread, where codec.h and the compiler
// check each number. With 8-bit moments a step moves so few bytes that the number of instructions sets its time.
#pragma once

#include <cmath>

#include "codec.h"
#include "cuda/ptx.cuh"
#include "update_rule.h"

// On the host seeds are correctly rounded; a test replaces SF_SEED to put them off.
#ifndef SF_SEED
#define SF_SEED(x) (x)
#endif

namespace sf {

__device__ __forceinline__ float seed_of_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  return ptx::approximate_reciprocal(x);
#else
  return SF_SEED(1.0f / x);
#endif
}

__device__ __forceinline__ float seed_of_reciprocal_root(float x) {
#if defined(__CUDA_ARCH__)
  return ptx::approximate_reciprocal_root(x);
#else
  return SF_SEED(static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))));
#endif
}

// Ieee's bits by the very steps that the compiler emits for a root and a quotient once it has found the operands to be
// neither very large nor very small; the caller has to guarantee that. The seeds come from the same unit as the
// compiler's: the second moment is scaled by an even power of two, which changes only the exponents. Whatever seeds the
// ISA allows, results are IEEE's but for two roots and one denominator, and these are right wherever the compiler's own
// are (tests/ptx/test_in_range.py tries all significands). The result is NaN where the denominator is zero.
struct InRange : Ieee {
  static constexpr float kSmallest = 0x1p-100f;     // of the magnitudes of first moments other than zero
  static constexpr float kLargest = 0x1p15f;        // of first moments, so that decode_factor() below is finite
  static constexpr float kLargestSecond = 0x1p31f;  // of second moments, likewise
  static constexpr float kLargestEps = 0x1p16f;

  __device__ __forceinline__ static float ratio(float exp_avg, float second_moment, float eps) {
    // Scaling by 2^64 takes the root of zero and of subnormal numbers without a branch; the addition, which changes
    // nothing else, gives zero a finite seed.
    const float scaled = second_moment * 0x1p64f, seed = seed_of_reciprocal_root(scaled + 0x1p-126f);
    const float near = scaled * seed, half = 0.5f * seed;
    const float root = fused_multiply_add(fused_multiply_add(-near, near, scaled), half, near);
    const float denom = fused_multiply_add(root, 0x1p-32f, eps);
    const float rough = seed_of_reciprocal(denom);
    const float inverse = fused_multiply_add(fused_multiply_add(-denom, rough, 1.0f), rough, rough);
    const float quotient = exp_avg * inverse;
    // the remainder and the inverse are both negated: else a quotient of -0 would become +0
    return fused_multiply_add(fused_multiply_add(denom, quotient, -exp_avg), -inverse, quotient);
  }
};

// The float32 with the exponent and fraction bits of the code of 1.0. Every code, read so, becomes its value times
// kUnit; subnormal codes become subnormal numbers, which cost a GPU nothing extra.
template <typename CODE>
constexpr float kUnit = CODE::one == 15 ? 0x1p-112f : 0x1p-96f;

// The factor from such a float32 to the value of the code. It is infinite for scales out of range, so that the codes
// become infinite or NaN.
template <typename CODE>
__device__ __forceinline__ float decode_factor(float scale) {
  return scale * (1.0f / kUnit<CODE>);
}

template <typename CODE>
__device__ __forceinline__ float encode_factor(uint8_t scale) {
  return inverse_scale(scale) * kUnit<CODE>;
}

// The value of the k-th code of a word, which is neither infinity nor NaN.
template <typename CODE>
__device__ __forceinline__ float decode_in_range(uint32_t codes, int k, float factor) {
  if constexpr (CODE::is_signed) {
    const auto top = static_cast<int32_t>(codes << (24 - 8 * k));
    return float_of(static_cast<uint32_t>(top >> 4) & 0x87F00000) * factor;
  }
  return float_of((k < 3 ? codes << (20 - 8 * k) : codes >> 4) & 0x0FF00000) * factor;
}

// The code is in the upper byte, except that the code of a positive second moment may come out as zero. `random` is
// shifted left by 8.
template <typename CODE>
__device__ __forceinline__ uint32_t encode_in_range(float x, float factor, uint32_t random) {
  const uint32_t code = bits_of(x * factor) * 16 + random;
  return CODE::is_signed ? (code & kMagnitude) | (bits_of(x) & ~kMagnitude) : code;
}

// Sets the upper bit of each byte that is the code of infinity or NaN, of the four codes in a word.
template <typename CODE>
__device__ __forceinline__ uint32_t special_bytes(uint32_t codes) {
  const uint32_t upper = CODE::is_signed ? codes & 0x7F7F7F7F : codes >> 1 & 0x7F7F7F7F;
  return (upper + (CODE::is_signed ? 0x02020202 : 0x01010101)) & 0x80808080;
}

template <typename CODE, int N>
__device__ __forceinline__ uint32_t special_bytes_of_all(const uint32_t (&codes)[N]) {
  uint32_t found = 0;
#pragma unroll
  for (int w = 0; w < N; ++w) found |= special_bytes<CODE>(codes[w]);
  return found;
}

// The larger of `largest` and the magnitude of x; NaN if either is NaN.
__device__ __forceinline__ float max_magnitude_or_nan(float largest, float x) {
#if defined(__CUDA_ARCH__)
  return ptx::max_or_nan(largest, fabsf(x));
#else
  const uint32_t magnitude = bits_of(x) & kMagnitude;
  return magnitude > bits_of(largest) ? float_of(magnitude) : largest;
#endif
}

// The k-th byte of a word, sign-extended and shifted left by 8.
__device__ __forceinline__ uint32_t signed_byte_shifted(uint32_t word, int k) {
#if defined(__CUDA_ARCH__)
  return ptx::signed_byte_shifted(word, k);
#else
  return static_cast<uint32_t>(static_cast<int8_t>(word >> 8 * k)) << 8;
#endif
}

}  // namespace sf
