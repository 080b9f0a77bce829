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

// Sixteen numbers that are rounded to bfloat16: the upper halves of the lanes; the lower halves are undefined.
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

// Reads the 16-bit numbers of a block: bfloat16 ones at even and at odd places, float16 ones in the order of memory.
template <int DTYPE>
SF_HOST_DEVICE EvenOdd<Numbers> unpack(const uint16_t* from) {
  if constexpr (DTYPE == kFloat16) {
    return {from_float16(load<__m256i>(from)), from_float16(load<__m256i>(from + kBlock / 2))};
  }
  const Bits words = load<Bits>(from);
  return {as_numbers(words << 16), as_numbers(words & broadcast<0xFFFF0000>())};
}

// Reads the block of a dtype that begins at element `at`.
template <int DTYPE>
SF_HOST_DEVICE EvenOdd<Numbers> read_numbers(const void* from, int64_t at) {
  if constexpr (DTYPE == kFloat32) return deinterleave(load_pair<Numbers>(static_cast<const float*>(from) + at));
  const EvenOdd<Numbers> numbers = unpack<DTYPE>(static_cast<const uint16_t*>(from) + at);
  return DTYPE == kFloat16 ? deinterleave(numbers) : numbers;
}

SF_HOST_DEVICE void write_float32(void* to, int64_t at, const EvenOdd<Bits>& x) {
  store_pair(static_cast<float*>(to) + at, interleave(x));
}

// Write the block that begins at element `at`. Of float16 the numbers are in the order of memory.
SF_HOST_DEVICE void write_rounded(void* to, int64_t at, const EvenOdd<Bfloat16Lanes>& x) {
  store(static_cast<uint16_t*>(to) + at, upper_halves({x.even.upper, x.odd.upper}));
}
SF_HOST_DEVICE void write_rounded(void* to, int64_t at, const EvenOdd<Float16Lanes>& x) {
  store(static_cast<uint16_t*>(to) + at, x.even.words);
  store(static_cast<uint16_t*>(to) + at + kBlock / 2, x.odd.words);
}

// to_bfloat16 or to_float16.
template <int DTYPE>
SF_HOST_DEVICE Rounded<DTYPE> to_nearest(Bits x) {
  if constexpr (DTYPE == kBfloat16) {
    // half a step less one, and one more where the result would be odd otherwise: a tie goes to the even one
    const __mmask16 is_odd = _mm512_test_epi32_mask(as_m512i(x), as_m512i(broadcast<0x10000>()));
    const __m512i up = as_m512i(x + broadcast<0x7FFF>());
    return {as_bits(_mm512_mask_sub_epi32(up, is_odd, up, _mm512_set1_epi32(-1)))};
  } else {
    return {_mm512_cvtps_ph(as_numbers(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
}

// to_float16 of a number and 16 random bits, without its last step, which is to_nearest().
SF_HOST_DEVICE Bits float16_steps(Bits x, Bits random) {
  const Bits magnitude = x & broadcast<kMagnitude>(), offset = random >> 3;
  // codec.h computes in multiples of 2^-24, which changes no bit; the steps of numbers from 0.5 to 1 are as large
  const Numbers sum = multiply_add(_mm512_cvtepi32_ps(as_m512i(offset)), broadcast(0x1p-37f), as_numbers(magnitude));
  const Numbers steps = _mm512_add_round_ps(sum, broadcast(0.5f), _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
  const Bits by_bits = (magnitude + offset) & broadcast<~0x1FFFu>();
  const Bits rounded = magnitude < broadcast<0x38800000>() ? as_bits(steps - 0.5f) : by_bits;
  return blend<kMagnitude>(rounded, x);
}

// --- the further bits of weights ---

// half_step by the exponent of a float16 number, as such a number; 0 where it is too small for one.
struct HalfStepTable {
  alignas(64) uint16_t of_exponent[32];
  constexpr HalfStepTable() : of_exponent() {
    for (int e = 2; e < 32; ++e) of_exponent[e] = static_cast<uint16_t>(e < 12 ? 1 << (e - 2) : (e - 11) << 10);
  }
};

// half_step of 32 numbers, in their own format. Of the smallest, whose half_step may be a subnormal number, it is 0.
template <int DTYPE>
SF_HOST_DEVICE __m512i half_steps(Bits words) {
  if constexpr (DTYPE == kBfloat16) {
    return _mm512_subs_epu16(as_m512i(words & broadcast<0x7F807F80>()), as_m512i(broadcast<8 << 23 | 8 << 7>()));
  } else {
    static constexpr HalfStepTable table;
    // of an index the lower five bits count: the exponent without the sign
    return _mm512_permutexvar_epi16(as_m512i(shift_words_right<10>(words)), load<__m512i>(table.of_exponent));
  }
}

// `compensated`
template <int DTYPE>
SF_HOST_DEVICE Numbers compensated(Numbers stored, Numbers lost) {
  constexpr uint32_t least = DTYPE == kBfloat16 ? 0x00800000 : 0x38800000;
  const Bits exponent = as_bits(stored) & broadcast<kInfinity>();
  const Bits at_least = exponent > broadcast<least>() ? exponent : broadcast<least>();
  const Numbers half_step = as_numbers(at_least) * (DTYPE == kBfloat16 ? 0x1p-8f : 0x1p-11f);
  const Numbers magnitude = as_numbers(as_bits(lost) & broadcast<kMagnitude>());
  return stored + (magnitude <= half_step ? lost : Numbers{});
}

// Reads weights with their compensations.
template <int DTYPE>
SF_HOST_DEVICE EvenOdd<Numbers> read_kahan(const uint16_t* param, const uint16_t* compensations) {
  const Bits words = load<Bits>(param), lost_words = load<Bits>(compensations);
  const EvenOdd<Numbers> stored = unpack<DTYPE>(param), lost = unpack<DTYPE>(compensations);
  EvenOdd<Numbers> weight = {stored.even + lost.even, stored.odd + lost.odd};
  const __m512i magnitudes = as_m512i(lost_words & broadcast<0x7FFF7FFF>());
  if (__builtin_expect(_mm512_cmpgt_epu16_mask(magnitudes, half_steps<DTYPE>(words)) != 0, false)) {
    weight = {compensated<DTYPE>(stored.even, lost.even), compensated<DTYPE>(stored.odd, lost.odd)};
  }
  return DTYPE == kFloat16 ? deinterleave(weight) : weight;
}

// `compensation`, where neither the weight nor what it was rounded to is infinite or NaN.
template <int DTYPE>
SF_HOST_DEVICE Rounded<DTYPE> compensation(Bits weight, const Rounded<DTYPE>& rounded) {
  return to_nearest<DTYPE>(as_bits(as_numbers(weight) - numbers_of(rounded)));
}

// Reads float32 weights; where one does not round to its parameter, someone has changed that since, and it counts.
template <int DTYPE>
SF_HOST_DEVICE EvenOdd<Numbers> read_master(const uint16_t* param, const float* master) {
  const EvenOdd<Numbers> stored = unpack<DTYPE>(param), in_order = load_pair<Numbers>(master);
  const EvenOdd<Numbers> whole = DTYPE == kBfloat16 ? deinterleave(in_order) : in_order;
  bool all_round;
  if constexpr (DTYPE == kBfloat16) {
    // a tie may round to the parameter too, which is left to the code below
    const Bits even = as_bits(whole.even) - as_bits(stored.even), odd = as_bits(whole.odd) - as_bits(stored.odd);
    const Bits limit = broadcast<0xFFFE>(), half = broadcast<0x7FFF>();
    all_round = !(_mm512_cmpgt_epu32_mask(as_m512i(even + half), as_m512i(limit)) |
                  _mm512_cmpgt_epu32_mask(as_m512i(odd + half), as_m512i(limit)));
  } else {
    const EvenOdd<Float16Lanes> rounded = {to_nearest<kFloat16>(as_bits(whole.even)),
                                           to_nearest<kFloat16>(as_bits(whole.odd))};
    const __m512i joined = _mm512_inserti64x4(_mm512_castsi256_si512(rounded.even.words), rounded.odd.words, 1);
    all_round = !_mm512_cmpneq_epi16_mask(joined, load<__m512i>(param));
  }
  EvenOdd<Numbers> weight = whole;
  if (__builtin_expect(!all_round, false)) {
    const auto current = [](Numbers of_param, Numbers of_master) {
      const Bits rounded = as_bits(numbers_of(to_nearest<DTYPE>(as_bits(of_master))));
      return rounded == as_bits(of_param) ? of_master : of_param;
    };
    weight = {current(stored.even, whole.even), current(stored.odd, whole.odd)};
  }
  return DTYPE == kBfloat16 ? weight : deinterleave(weight);
}

// `join`, but NaN where a zero has a negative remainder; that is out of range too. REMAINDER has 8 or 16 bits.
template <typename REMAINDER>
SF_HOST_DEVICE EvenOdd<Numbers> read_split(const uint16_t* param, const REMAINDER* remainders) {
  Bits rest, lower;
  if constexpr (sizeof(REMAINDER) == 1) {
    rest = as_bits(_mm512_cvtepi8_epi16(load<__m256i>(remainders)));
    lower = shift_words_left<8>(rest);
  } else {
    rest = lower = load<Bits>(remainders);
  }
  const Bits part = load<Bits>(param);
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

// decode_finite for second moments; `has_subnormal` may be false if all codes are 8 or more. Of the two values between
// which that chooses by `magnitude < 8`, the right one is the smaller.
static_assert(SecondMoment::one == 31 && !SecondMoment::is_signed);
SF_HOST_DEVICE EvenOdd<Numbers> decode_second(const uint8_t* from, float scale, bool has_subnormal) {
  constexpr uint32_t code = 0xFFu << 20, exponent = (127u - SecondMoment::one) << 23;
  const Bits pairs = as_bits(_mm512_cvtepu16_epi32(load<__m256i>(from)));
  Numbers even = as_numbers(masked_or<code, exponent>(pairs << 20));
  Numbers odd = as_numbers(masked_or<code, exponent>(pairs << 12));
  if (__builtin_expect(has_subnormal, false)) {
    even = minimum(multiply_add(even, broadcast(2.0f), broadcast(-0x1p-30f)), even);
    odd = minimum(multiply_add(odd, broadcast(2.0f), broadcast(-0x1p-30f)), odd);
  }
  return {even * scale, odd * scale};
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
