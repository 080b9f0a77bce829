// codec.h for sixteen numbers at a time, with the same bits for numbers in range. Infinity, NaN and magnitudes whose
// scale would be clamped are out of range, and left to codec.h. Numbers are in the order of avx512.h: the even places
// of a block, then the odd ones.
#pragma once

#include "codec.h"
#include "cpu/avx512.h"

#if SF_AVX512

namespace sf {
namespace {

SF_HOST_DEVICE EvenOdd<Numbers> read_bfloat16(const uint16_t* from) {
  const Bits words = load<Bits>(from);
  return {as_numbers(words << 16), as_numbers(words & broadcast<0xFFFF0000>())};
}

// to_bfloat16, without its final shift.
SF_HOST_DEVICE Bits to_nearest(Bits x) { return x + broadcast<0x7FFF>() + (x >> 16 & broadcast<1>()); }

// join<8>, but NaN where a zero has a negative remainder; that is out of range too.
SF_HOST_DEVICE EvenOdd<Numbers> read_split8(const uint16_t* part, const int8_t* remainder) {
  const __m512i rest = _mm512_cvtepi8_epi16(load<__m256i>(remainder));
  const Bits upper = as_bits(_mm512_add_epi16(as_m512i(load<Bits>(part)), _mm512_srai_epi16(rest, 15)));
  const Bits lower = shift_words_left<8>(as_bits(rest));
  return {as_numbers(blend<0xFFFF0000>(upper << 16, lower)), as_numbers(blend<0xFFFF0000>(upper, lower >> 16))};
}

// Decodes the first moments of two blocks to float16, in units of their scale. A code is such a float16 number without
// its top exponent bit and its lower fraction bits.
static_assert(FirstMoment::one == 15 && FirstMoment::is_signed);
SF_HOST_DEVICE EvenOdd<Bits> first_as_float16(Bits codes) {
  return {shift_words_right_signed<1>(shift_words_left<8>(codes)) & broadcast<0xBF80BF80>(),
          shift_words_right_signed<1>(codes) & broadcast<0xBF80BF80>()};
}

// Converts one of these blocks, 0 or 1, to float32.
template <int BLOCK>
SF_HOST_DEVICE EvenOdd<Numbers> decode_first(const EvenOdd<Bits>& words, float scale) {
  return {from_float16_words<BLOCK>(words.even) * scale, from_float16_words<BLOCK>(words.odd) * scale};
}

// decode_finite for codes that start at bit 20. Of the two values between which that chooses by `magnitude < 8`, the
// right one is the smaller.
static_assert(SecondMoment::one == 31 && !SecondMoment::is_signed);
SF_HOST_DEVICE Numbers decode_second(Bits shifted, float scale) {
  const Numbers y = as_numbers(masked_or<0xFFu << 20, (127u - SecondMoment::one) << 23>(shifted));
  return minimum(multiply_add(y, broadcast(2.0f), broadcast(-0x1p-30f)), y) * scale;
}

SF_HOST_DEVICE EvenOdd<Numbers> decode_second(const uint8_t* from, float scale) {
  const Bits pairs = as_bits(_mm512_cvtepu16_epi32(load<__m256i>(from)));
  return {decode_second(pairs << 20, scale), decode_second(pairs << 12, scale)};
}

// encode_finite without its final shift and its subtraction: bits 20 to 27 hold the code, except that the sign of a
// first moment is in bit 31. encode_finite chooses between two values by `is_subnormal`; once y + smallest_normal is
// halved, both need the same subtraction and the right one is the larger.
SF_HOST_DEVICE Bits first_steps(Numbers x, float inverse, float half_inverse, Bits random) {
  const Numbers magnitude = as_numbers(as_bits(x) & broadcast<kMagnitude>());
  const Numbers subnormal = multiply_add(magnitude, broadcast(half_inverse), broadcast(0x1p-15f));
  return as_bits(max_magnitude_signed(x * inverse, subnormal)) + random;
}

SF_HOST_DEVICE Bits second_steps(Numbers x, float inverse, Bits random) {
  const Numbers y = x * inverse;
  return as_bits(maximum(y, multiply_add(y, broadcast(0.5f), broadcast(0x1p-31f)))) + random;
}

// The codes of two blocks; `words` holds the upper 16 bits of what first_steps() or second_steps() returned.
SF_HOST_DEVICE Bits first_codes(const Bits (&words)[2]) {
  return pack_bytes(blend<0x00800080>(shift_words_right<8>(words[0]), shift_words_right<4>(words[0])),
                    blend<0x80008000>(words[1], shift_words_left<4>(words[1])));
}

SF_HOST_DEVICE Bits second_codes(const Bits (&words)[2], const float* first, const float* second) {
  const Bits codes = pack_bytes(shift_words_right<4>(words[0]), shift_words_left<4>(words[1]));
  if (!_mm512_testn_epi8_mask(as_m512i(codes), as_m512i(codes))) return codes;
  // no positive second moment becomes zero
  const auto x = load_pair<Bits>(first), y = load_pair<Bits>(second);
  const Bits least[2] = {(x.even != 0 ? broadcast<1>() : Bits{}) | (x.odd != 0 ? broadcast<1 << 16>() : Bits{}),
                         (y.even != 0 ? broadcast<1 << 8>() : Bits{}) | (y.odd != 0 ? broadcast<1 << 24>() : Bits{})};
  return max_bytes(codes, pack_bytes(least[0], least[1]));
}

}  // namespace
}  // namespace sf

#endif
