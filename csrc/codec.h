// Conversions between float32 and what a buffer stores: bfloat16, float16, a bfloat16 part with a remainder, and 8-bit
// codes with a scale per block. The bits are those of stackelberg_fused/numerics/codec.py. A `random` argument is 16
// random bits, for stochastic rounding.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace sf {

constexpr int kBlock = 32;  // elements that share a scale

SF_HOST_DEVICE uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(uint32_t, x);
#endif
}

SF_HOST_DEVICE float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

constexpr uint32_t kMagnitude = 0x7FFFFFFF, kInfinity = 0x7F800000;

// --- bfloat16 ---

SF_HOST_DEVICE float from_bfloat16(uint16_t x) { return float_of(static_cast<uint32_t>(x) << 16); }

// Rounds to nearest, ties to even.
SF_HOST_DEVICE uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(x != x ? 0x7FC0 : rounded);
}

SF_HOST_DEVICE uint16_t to_bfloat16(float x, uint32_t random) {
  // infinity stays infinity: its lower 16 bits, to which the random number is added, are zero
  const uint32_t rounded = bits_of(x) + random;
  return static_cast<uint16_t>(x != x ? 0x7FC0 : rounded >> 16);
}

// --- float16 ---

SF_HOST_DEVICE float from_float16(uint16_t x) {
  const uint32_t shifted = static_cast<uint32_t>(x & 0x7FFF) << 13, exponent = shifted & 0x0F800000;
  const uint32_t normal = shifted + (112u << 23);
  // a subnormal number is read with the implicit leading one of a normal number, which is then subtracted
  const float subnormal = float_of(normal + (1u << 23)) - float_of(113u << 23);
  const uint32_t special = normal + (112u << 23);
  const uint32_t bits = exponent == 0 ? bits_of(subnormal) : exponent == 0x0F800000 ? special : normal;
  return float_of(bits | static_cast<uint32_t>(x & 0x8000) << 16);
}

// Rounds to nearest, ties to even.
SF_HOST_DEVICE uint16_t to_float16(float x) {
  const uint32_t bits = bits_of(x), magnitude = bits & kMagnitude;
  // adding 0.5 rounds at the last bit of a subnormal number
  const uint32_t subnormal = bits_of(float_of(magnitude < 0x38800000 ? magnitude : 0) + 0.5f) - 0x3F000000;
  const uint32_t normal = (magnitude - (112u << 23) + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t special = magnitude > kInfinity ? 0x7E00 : 0x7C00;
  const uint32_t rounded = magnitude < 0x38800000 ? subnormal : magnitude < 0x47800000 ? normal : special;
  return static_cast<uint16_t>(rounded | (bits >> 16 & 0x8000));
}

SF_HOST_DEVICE uint16_t to_float16(float x, uint32_t random) {
  const uint32_t bits = bits_of(x), magnitude = bits & kMagnitude, offset = random >> 3;
  // Subnormal numbers are equally spaced, by 2^-24; others are spaced as their bits. Either way 13 bits are dropped.
  const float small = float_of(magnitude < 0x3F800000 ? magnitude : 0x3F800000);
  const auto steps =
      static_cast<int32_t>(small * 0x1p24f + static_cast<float>(static_cast<int32_t>(offset)) * 0x1p-13f);
  const uint32_t by_bits = magnitude < kInfinity ? (magnitude + offset) & ~0x1FFFu : magnitude;
  const uint32_t rounded = magnitude < 0x38800000 ? bits_of(static_cast<float>(steps) * 0x1p-24f) : by_bits;
  return to_float16(float_of(rounded | (bits & ~kMagnitude)));
}

// --- a bfloat16 part and a signed remainder ---

struct Split {
  uint16_t part;
  int16_t remainder;  // -128 to 127 where it has 8 bits
};

// The part is the weight rounded to nearest, ties away from zero: ties to even would need one more remainder than the
// BITS can express.
template <int BITS>
SF_HOST_DEVICE Split split(float weight) {
  uint32_t whole = bits_of(weight);
  const bool is_nan = (whole & kMagnitude) > kInfinity;
  if constexpr (BITS == 8) whole = (whole + 0x80) & ~0xFFu;
  const uint32_t upper = (whole + 0x8000) >> 16;
  const auto remainder = static_cast<int32_t>(whole - (upper << 16)) >> (16 - BITS);
  return {static_cast<uint16_t>(is_nan ? 0x7FC0 : upper), static_cast<int16_t>(is_nan ? 0 : remainder)};
}

template <int BITS>
SF_HOST_DEVICE float join(uint16_t part, int16_t remainder) {
  // split() never leaves a negative remainder beside a zero part: someone has zeroed the parameter since
  if ((part & 0x7FFF) == 0 && remainder < 0) remainder = 0;
  return float_of((static_cast<uint32_t>(part) << 16) + (static_cast<uint32_t>(remainder) << (16 - BITS)));
}

// The largest error of rounding to nearest: half the spacing of the stored format.
SF_HOST_DEVICE float half_step(float stored, bool is_bfloat16) {
  const uint32_t exponent = bits_of(stored) & kInfinity, least = is_bfloat16 ? 0x00800000 : 0x38800000;
  return float_of(exponent > least ? exponent : least) * (is_bfloat16 ? 0x1p-8f : 0x1p-11f);
}

// The weight that a rounded value and its compensation represent. A compensation larger than a rounding error belongs
// to a weight that someone has replaced since, and is ignored.
SF_HOST_DEVICE float compensated(float stored, float lost, bool is_bfloat16) {
  const float magnitude = float_of(bits_of(lost) & kMagnitude);
  return stored + (magnitude <= half_step(stored, is_bfloat16) ? lost : 0.0f);
}

// The rounding error of a stored weight; 0 where that is not finite.
SF_HOST_DEVICE float compensation(float weight, float stored) {
  const float lost = weight - stored;
  return (bits_of(lost) & kMagnitude) < kInfinity ? lost : 0.0f;
}

// --- 8-bit codes with a scale per block ---

// A code is `exponent * 8 + fraction`, for a value of magnitude at most 1 in units of the block's scale. ONE is the
// exponent of 1.0.
template <int ONE, bool SIGNED>
struct Code {
  static constexpr int one = ONE;
  static constexpr bool is_signed = SIGNED;
  static constexpr uint32_t largest = ONE * 8 + 5;  // largest + 1 is infinity, largest + 2 is NaN
};
using FirstMoment = Code<15, true>;
// Second moments: no positive one becomes zero, since the update divides a nonzero first moment by its square root.
using SecondMoment = Code<31, false>;

// The bits of a magnitude that may become a block's largest; 0 for infinity and NaN.
SF_HOST_DEVICE uint32_t finite_magnitude(float x) {
  const uint32_t magnitude = bits_of(x) & kMagnitude;
  return magnitude < kInfinity ? magnitude : 0;
}

// Above this magnitude a block's scale is clamped, to 2^126.
constexpr uint32_t kLargestScaled = 253u << 23;

// The smallest power of two that is at least the largest magnitude: s stands for 2^(s - 127), 0 for a block of zeros.
SF_HOST_DEVICE uint8_t scale_of(uint32_t largest) {
  const uint32_t scale = (largest + 0x7FFFFF) >> 23;
  return static_cast<uint8_t>(scale < 253 ? scale : 253);
}

SF_HOST_DEVICE float scale_value(uint8_t scale) { return float_of(static_cast<uint32_t>(scale) << 23); }
SF_HOST_DEVICE float inverse_scale(uint8_t scale) { return float_of((254u - scale) << 23); }

// The code of a finite number whose block's scale is not clamped.
template <typename CODE>
SF_HOST_DEVICE uint32_t encode_finite(float x, float inverse, uint32_t random) {
  constexpr float smallest_normal = CODE::one == 15 ? 0x1p-14f : 0x1p-30f;
  const uint32_t bits = bits_of(x), magnitude = bits & kMagnitude;
  const float y = float_of(magnitude) * inverse;
  // codes of exponent 0 are subnormal: the addition gives y the implicit leading one that they lack
  const bool is_subnormal = y < smallest_normal;
  const uint32_t steps = (bits_of(is_subnormal ? y + smallest_normal : y) + (random << 4)) >> 20;
  uint32_t code = steps - (is_subnormal ? 8 * (128 - CODE::one) : 8 * (127 - CODE::one));
  if constexpr (!CODE::is_signed) code = code == 0 && magnitude > 0 ? 1 : code;
  if constexpr (CODE::is_signed) code |= bits >> 24 & 0x80;
  return code;
}

template <typename CODE>
SF_HOST_DEVICE uint32_t encode(float x, float inverse, uint32_t random) {
  const uint32_t magnitude = bits_of(x) & kMagnitude;
  // NaN gets no sign: which one an operation gives it is not defined
  const uint32_t sign = CODE::is_signed && magnitude <= kInfinity ? bits_of(x) >> 24 & 0x80 : 0;
  const uint32_t code = encode_finite<CODE>(float_of(magnitude), inverse, random);
  const uint32_t finite = code < CODE::largest ? code : CODE::largest;
  const uint32_t special = magnitude == kInfinity ? CODE::largest + 1 : CODE::largest + 2;
  return (magnitude < kInfinity ? finite : special) | sign;
}

// True for the codes of infinity and NaN.
template <typename CODE>
SF_HOST_DEVICE bool is_special(uint32_t code) {
  return (CODE::is_signed ? code & 0x7F : code) > CODE::largest;
}

template <typename CODE>
SF_HOST_DEVICE float decode_finite(uint32_t code, float scale) {
  constexpr float shift = CODE::one == 15 ? 0x1p-15f : 0x1p-31f;
  const uint32_t magnitude = CODE::is_signed ? code & 0x7Fu : code;
  // exponent 0 is read with the implicit leading one of the others, which is then subtracted
  float y = float_of((magnitude << 20) + (static_cast<uint32_t>(127 - CODE::one) << 23));
  y = magnitude < 8 ? (y - shift) * 2.0f : y;
  uint32_t bits = bits_of(y * scale);
  if constexpr (CODE::is_signed) bits |= (code & 0x80) << 24;
  return float_of(bits);
}

template <typename CODE>
SF_HOST_DEVICE float decode(uint32_t code, float scale) {
  const uint32_t magnitude = CODE::is_signed ? code & 0x7Fu : code;
  const uint32_t sign = CODE::is_signed ? (code & 0x80) << 24 : 0;
  const uint32_t special = (magnitude == CODE::largest + 1 ? kInfinity : 0x7FC00000u) | sign;
  return is_special<CODE>(code) ? float_of(special) : decode_finite<CODE>(code, scale);
}

}  // namespace sf
