// Sixteen numbers at a time as AVX-512 takes them. The vector types of GCC and Clang have operators for most of what is
// needed; here the rest has names: single instructions that no compiler makes of a loop. Empty without AVX-512.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define SF_LANES 1

#if !defined(__clang__)
// GCC's header starts from vectors that it leaves undefined
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace sf {
namespace {

using Bits = uint32_t __attribute__((vector_size(64)));
using Numbers = float __attribute__((vector_size(64)));

// 32 consecutive numbers, those at even places and those at odd ones. Sixteen bits of each, in one vector, are the
// lower and upper halves of its lanes: a shift and a mask take them apart, and nothing is shuffled.
template <typename Vector>
struct Halves {
  Vector even, odd;
};

template <typename Vector>
SF_HOST_DEVICE Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <typename Vector>
SF_HOST_DEVICE void store(void* to, const Vector& vector) {
  std::memcpy(to, &vector, sizeof vector);
}

template <typename Vector>
SF_HOST_DEVICE Halves<Vector> load_halves(const float* from) {
  return {load<Vector>(from), load<Vector>(from + 16)};
}

template <typename Vector>
SF_HOST_DEVICE void store_halves(float* to, const Halves<Vector>& x) {
  store(to, x.even);
  store(to + 16, x.odd);
}

SF_HOST_DEVICE Bits as_bits(Numbers x) { return reinterpret_cast<Bits>(x); }
SF_HOST_DEVICE Bits as_bits(__m512i x) { return reinterpret_cast<Bits>(x); }
SF_HOST_DEVICE Numbers as_numbers(Bits x) { return reinterpret_cast<Numbers>(x); }
SF_HOST_DEVICE __m512i raw(Bits x) { return reinterpret_cast<__m512i>(x); }

// A vector of one number, read from memory, where that costs nothing; compilers would make it of an immediate at each
// use, on the port that shuffles.
template <uint32_t VALUE>
SF_HOST_DEVICE Bits all() {
  static constexpr uint32_t value = VALUE;
  Bits x;
  asm("vpbroadcastd %1, %0" : "=v"(x) : "m"(value));
  return x;
}

SF_HOST_DEVICE Numbers all(float x) { return _mm512_set1_ps(x); }

// The bits of `a` where MASK has ones, of `b` elsewhere.
template <uint32_t MASK>
SF_HOST_DEVICE Bits chosen(Bits a, Bits b) {
  return as_bits(_mm512_ternarylogic_epi32(raw(a), raw(b), raw(all<MASK>()), 0xE4));
}

// (a & MASK) | VALUE
template <uint32_t MASK, uint32_t VALUE>
SF_HOST_DEVICE Bits masked_or(Bits a) {
  return as_bits(_mm512_ternarylogic_epi32(raw(a), raw(all<MASK>()), raw(all<VALUE>()), 0xEA));
}

// (a ^ b) & MASK
template <uint32_t MASK>
SF_HOST_DEVICE Bits masked_difference(Bits a, Bits b) {
  return as_bits(_mm512_ternarylogic_epi32(raw(a), raw(b), raw(all<MASK>()), 0x28));
}

// Of a NaN and a number, `b`.
SF_HOST_DEVICE Numbers larger(Numbers a, Numbers b) { return _mm512_max_ps(a, b); }
SF_HOST_DEVICE Numbers smaller(Numbers a, Numbers b) { return _mm512_min_ps(a, b); }
// The larger magnitude, and that with the sign of `a`; of a NaN and a number, the number's.
SF_HOST_DEVICE Numbers larger_magnitude(Numbers a, Numbers b) { return _mm512_range_ps(a, b, 0b1011); }
SF_HOST_DEVICE Numbers larger_magnitude_signed(Numbers a, Numbers b) { return _mm512_range_ps(a, b, 0b0011); }
SF_HOST_DEVICE Numbers square_root(Numbers x) { return _mm512_sqrt_ps(x); }
SF_HOST_DEVICE Numbers multiply_add(Numbers a, Numbers b, Numbers c) { return _mm512_fmadd_ps(a, b, c); }

// Shifts of 16-bit numbers.
template <int COUNT>
SF_HOST_DEVICE Bits words_left(Bits x) {
  return as_bits(_mm512_slli_epi16(raw(x), COUNT));
}
template <int COUNT>
SF_HOST_DEVICE Bits words_right(Bits x) {
  return as_bits(_mm512_srli_epi16(raw(x), COUNT));
}
template <int COUNT>
SF_HOST_DEVICE Bits words_right_signed(Bits x) {
  return as_bits(_mm512_srai_epi16(raw(x), COUNT));
}

SF_HOST_DEVICE Bits larger_bytes(Bits a, Bits b) { return as_bits(_mm512_max_epu8(raw(a), raw(b))); }

SF_HOST_DEVICE Bits upper_halves(const Halves<Bits>& x) { return chosen<0xFFFF0000>(x.odd, x.even >> 16); }

// Sixteen float16 numbers: the first (0) or the last (1) of `words`.
template <int HALF>
SF_HOST_DEVICE Numbers from_float16_words(Bits words) {
  return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(raw(words), HALF));
}

// 32 numbers as they lie in memory, and as lanes have them.
SF_HOST_DEVICE Halves<Numbers> taken_apart(const Halves<Numbers>& in_order) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return {_mm512_permutex2var_ps(in_order.even, even, in_order.odd),
          _mm512_permutex2var_ps(in_order.even, odd, in_order.odd)};
}

SF_HOST_DEVICE Halves<Numbers> put_together(const Halves<Numbers>& lanes) {
  const __m512i first = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i second = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  return {_mm512_permutex2var_ps(lanes.even, first, lanes.odd), _mm512_permutex2var_ps(lanes.even, second, lanes.odd)};
}

// The lower bytes of the words of `first` and then the upper ones of `second`.
SF_HOST_DEVICE Bits joined_bytes(Bits first, Bits second) {
  const __m512i apart = _mm512_set4_epi32(0x0F0D0B09, 0x07050301, 0x0E0C0A08, 0x06040200);
  const __m512i in_order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
  return as_bits(
      _mm512_permutexvar_epi64(in_order, _mm512_shuffle_epi8(raw(chosen<0x00FF00FF>(first, second)), apart)));
}

}  // namespace
}  // namespace sf

#endif
