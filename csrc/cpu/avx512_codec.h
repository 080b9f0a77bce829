// codec.h for sixteen numbers at a time, with the same bits for numbers in range. Infinity, NaN and magnitudes whose
// scale would be clamped are out of range, and left to codec.h. Numbers are in the order of avx512.h: the even places
// of a block, then the odd ones.
#pragma once

#include <type_traits>

#include "codec.h"
#include "cpu/avx512.h"
#include "tables.h"

#if SF_AVX512

namespace sf {
namespace {

// Fetches the block that begins at element `at`, of BYTES each.
template <int BYTES>
SF_HOST_DEVICE void prefetch_block(const void* from, int64_t at) {
  // where an element has one byte, half of these prefetches repeat the last cache line
  for (int line = 0; line < (BYTES * kBlock + 63) / 64; ++line) {
    __builtin_prefetch(static_cast<const char*>(from) + at * BYTES + 64 * line);
  }
}

// --- bfloat16 and float16 ---

// Sixteen numbers that are rounded to bfloat16, whose bits are the upper halves of the lanes; lower halves are undefined.
struct Bfloat16Lanes {
  Bits upper;
};
// Sixteen numbers that are rounded to float16, in the order of the lanes.
struct Float16Lanes {
  __m256i words;
};
template <int DTYPE>
using Rounded = std::conditional_t<DTYPE == kBfloat16, Bfloat16Lanes, Float16Lanes>;

SF_HOST_DEVICE Numbers numbers_of(const Bfloat16Lanes& x) { return as_numbers(x.upper & broadcast<0xFFFF0000>()); }
SF_HOST_DEVICE Numbers numbers_of(const Float16Lanes& x) { return from_float16(x.words); }

// The 16-bit numbers of a block, in the order of memory.
SF_HOST_DEVICE Bits in_memory_order(const EvenOdd<Bfloat16Lanes>& x) {
  return upper_halves({x.even.upper, x.odd.upper});
}
SF_HOST_DEVICE Bits in_memory_order(const EvenOdd<Float16Lanes>& x) {
  return as_bits(_mm512_cvtepu16_epi32(x.even.words)) | as_bits(_mm512_cvtepu16_epi32(x.odd.words)) << 16;
}

// Reads the block of a dtype that begins at element `at`.
template <int DTYPE>
SF_HOST_DEVICE EvenOdd<Numbers> read_numbers(const void* from, int64_t at) {
  if constexpr (DTYPE == kFloat32) {
    return deinterleave(load_pair<Numbers>(static_cast<const float*>(from) + at));
  } else if constexpr (DTYPE == kBfloat16) {
    const Bits words = load<Bits>(static_cast<const uint16_t*>(from) + at);
    return {as_numbers(words << 16), as_numbers(words & broadcast<0xFFFF0000>())};
  } else {
    const uint16_t* const words = static_cast<const uint16_t*>(from) + at;
    return deinterleave({from_float16(load<__m256i>(words)), from_float16(load<__m256i>(words + 16))});
  }
}

SF_HOST_DEVICE void write_float32(void* to, int64_t at, const EvenOdd<Bits>& x) {
  store_pair(static_cast<float*>(to) + at, interleave({as_numbers(x.even), as_numbers(x.odd)}));
}

// to_bfloat16 or to_float16.
template <int DTYPE>
SF_HOST_DEVICE Rounded<DTYPE> to_nearest(Bits x) {
  if constexpr (DTYPE == kBfloat16) {
    return {x + broadcast<0x7FFF>() + (x >> 16 & broadcast<1>())};
  } else {
    return {_mm512_cvtps_ph(as_numbers(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
}

// to_bfloat16 or to_float16 with 16 random bits per lane.
template <int DTYPE>
SF_HOST_DEVICE Rounded<DTYPE> to_stochastic(Bits x, Bits random) {
  if constexpr (DTYPE == kBfloat16) {
    return {x + random};
  } else {
    const Bits magnitude = x & broadcast<kMagnitude>(), offset = random >> 3;
    const Numbers fraction = _mm512_cvtepi32_ps(as_m512i(offset)) * 0x1p-13f;
    // both products are exact, so that fusing one of them with the sum changes nothing
    const Numbers steps = _mm512_roundscale_ps(multiply_add(as_numbers(magnitude), broadcast(0x1p24f), fraction),
                                               _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
    const Bits by_bits = (magnitude + offset) & broadcast<~0x1FFFu>();
    const Bits rounded = magnitude < broadcast<0x38800000>() ? as_bits(steps * 0x1p-24f) : by_bits;
    return to_nearest<kFloat16>(blend<kMagnitude>(rounded, x));
  }
}

// --- the further bits of weights ---

// `compensated`
template <int DTYPE>
SF_HOST_DEVICE Numbers compensated(Numbers stored, Numbers lost) {
  constexpr uint32_t least = DTYPE == kBfloat16 ? 0x00800000 : 0x38800000;
  const Bits exponent = as_bits(stored) & broadcast<kInfinity>();
  const Bits at_least = exponent > broadcast<least>() ? exponent : broadcast<least>();
  const Numbers half_step = as_numbers(at_least) * (DTYPE == kBfloat16 ? 0x1p-8f : 0x1p-11f);
  const __mmask16 counts = _mm512_cmp_ps_mask(as_numbers(as_bits(lost) & broadcast<kMagnitude>()), half_step, _CMP_LE_OQ);
  return stored + _mm512_maskz_mov_ps(counts, lost);
}

// `compensation`
SF_HOST_DEVICE Bits compensation(Numbers weight, Numbers stored) {
  constexpr int nan_or_infinity = 0x99;
  const Numbers lost = weight - stored;
  return as_bits(_mm512_maskz_mov_ps(static_cast<__mmask16>(~_mm512_fpclass_ps_mask(lost, nan_or_infinity)), lost));
}

// `join`, but NaN where a zero has a negative remainder; that is out of range too. REMAINDER has 8 or 16 bits.
template <typename REMAINDER>
SF_HOST_DEVICE EvenOdd<Numbers> read_split(const void* param, const void* remainder, int64_t at) {
  Bits rest, lower;
  if constexpr (sizeof(REMAINDER) == 1) {
    rest = as_bits(_mm512_cvtepi8_epi16(load<__m256i>(static_cast<const REMAINDER*>(remainder) + at)));
    lower = shift_words_left<8>(rest);
  } else {
    rest = lower = load<Bits>(static_cast<const REMAINDER*>(remainder) + at);
  }
  const Bits part = load<Bits>(static_cast<const uint16_t*>(param) + at);
  const Bits upper = as_bits(_mm512_add_epi16(as_m512i(part), as_m512i(shift_words_right_signed<15>(rest))));
  return {as_numbers(blend<0xFFFF0000>(upper << 16, lower)), as_numbers(blend<0xFFFF0000>(upper, lower >> 16))};
}

// --- 8-bit codes ---

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
