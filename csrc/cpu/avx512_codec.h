// codec.h for sixteen numbers at a time, to the same bits wherever nothing is unusual: infinities, NaN and magnitudes
// that no scale reaches are for others. Numbers are in the order of avx512.h: of each block first those at even places.
#pragma once

#include "codec.h"
#include "cpu/avx512.h"

#if SF_LANES

namespace sf {
namespace {

SF_HOST_DEVICE Halves<Numbers> read_bfloat16(const uint16_t* from) {
  const Bits words = load<Bits>(from);
  return {as_numbers(words << 16), as_numbers(words & all<0xFFFF0000>())};
}

// to_bfloat16 up to its shift.
SF_HOST_DEVICE Bits to_nearest(Bits x) { return x + all<0x7FFF>() + (x >> 16 & all<1>()); }

// join<8>, but NaN where somebody has written a zero beside a negative remainder: that is for others too.
SF_HOST_DEVICE Halves<Numbers> read_split8(const uint16_t* part, const int8_t* remainder) {
  const __m512i rest = _mm512_cvtepi8_epi16(load<__m256i>(remainder));
  const Bits upper = as_bits(_mm512_add_epi16(raw(load<Bits>(part)), _mm512_srai_epi16(rest, 15)));
  const Bits lower = words_left<8>(as_bits(rest));
  return {as_numbers(chosen<0xFFFF0000>(upper << 16, lower)), as_numbers(chosen<0xFFFF0000>(upper, lower >> 16))};
}

// The float16 numbers that first moments of two blocks are in a scale of 1: codes are these without their uppermost bit
// of exponent and their lower ones of fraction.
static_assert(FirstMoment::one == 15 && FirstMoment::is_signed);
SF_HOST_DEVICE Halves<Bits> first_as_float16(Bits codes) {
  return {words_right_signed<1>(words_left<8>(codes)) & all<0xBF80BF80>(),
          words_right_signed<1>(codes) & all<0xBF80BF80>()};
}

// Of these, the block BLOCK.
template <int BLOCK>
SF_HOST_DEVICE Halves<Numbers> decode_first(const Halves<Bits>& words, float scale) {
  return {from_float16_words<BLOCK>(words.even) * scale, from_float16_words<BLOCK>(words.odd) * scale};
}

// decode_finite for codes from bit 20 on: of what it chooses between by `magnitude < 8`, the smaller is the right one.
static_assert(SecondMoment::one == 31 && !SecondMoment::is_signed);
SF_HOST_DEVICE Numbers decoded_second(Bits shifted, float scale) {
  const Numbers y = as_numbers(masked_or<0xFFu << 20, (127u - SecondMoment::one) << 23>(shifted));
  return smaller(multiply_add(y, all(2.0f), all(-0x1p-30f)), y) * scale;
}

SF_HOST_DEVICE Halves<Numbers> decode_second(const uint8_t* from, float scale) {
  const Bits pairs = as_bits(_mm512_cvtepu16_epi32(load<__m256i>(from)));
  return {decoded_second(pairs << 20, scale), decoded_second(pairs << 12, scale)};
}

// encode_finite up to its shift, and without what its code subtracts: bits 20 to 27 are those of the code, but for the
// uppermost one of a first moment, whose sign is in bit 31. Of what it chooses between by `y < even`, twice the first
// with an exponent less, the larger is the right one.
SF_HOST_DEVICE Bits first_steps(Numbers x, float inverse, float half_inverse, Bits random) {
  const Numbers magnitude = as_numbers(as_bits(x) & all<kMagnitude>());
  const Numbers from_even = multiply_add(magnitude, all(half_inverse), all(0x1p-15f));
  return as_bits(larger_magnitude_signed(x * inverse, from_even)) + random;
}

SF_HOST_DEVICE Bits second_steps(Numbers x, float inverse, Bits random) {
  const Numbers y = x * inverse;
  return as_bits(larger(y, multiply_add(y, all(0.5f), all(0x1p-31f)))) + random;
}

// The codes of two blocks, of which `words` has the upper halves of steps.
SF_HOST_DEVICE Bits first_codes(const Bits (&words)[2]) {
  return joined_bytes(chosen<0x00800080>(words_right<8>(words[0]), words_right<4>(words[0])),
                      chosen<0x80008000>(words[1], words_left<4>(words[1])));
}

SF_HOST_DEVICE Bits second_codes(const Bits (&words)[2], const float* first, const float* second) {
  const Bits codes = joined_bytes(words_right<4>(words[0]), words_left<4>(words[1]));
  if (!_mm512_testn_epi8_mask(raw(codes), raw(codes))) return codes;
  // no positive one becomes zero
  const auto x = load_halves<Bits>(first), y = load_halves<Bits>(second);
  const Bits least[2] = {(x.even != 0 ? all<1>() : Bits{}) | (x.odd != 0 ? all<1 << 16>() : Bits{}),
                         (y.even != 0 ? all<1 << 8>() : Bits{}) | (y.odd != 0 ? all<1 << 24>() : Bits{})};
  return larger_bytes(codes, joined_bytes(least[0], least[1]));
}

}  // namespace
}  // namespace sf

#endif
