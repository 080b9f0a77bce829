// Vectors of sixteen numbers for AVX-512. The vector types of GCC and Clang have operators for most operations; this
// header names the others, single instructions that no compiler would choose for a loop. Empty without AVX-512.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define SF_AVX512 1

#include <cstdint>
#include <cstring>

#include "cpu/intrinsics.h"
#include "host_device.h"

namespace sf {
namespace {

using Bits = uint32_t __attribute__((vector_size(64)));
using Numbers = float __attribute__((vector_size(64)));

// 32 consecutive numbers as two vectors: those at even and those at odd places. 32 consecutive 16-bit numbers fill one
// vector, whose lanes hold an even one in the lower half and an odd one in the upper half, so a shift and a mask
// separate them and nothing is shuffled.
template <typename Vector>
struct EvenOdd {
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

// Two consecutive vectors from and to memory, in whichever order their numbers are.
template <typename Vector>
SF_HOST_DEVICE EvenOdd<Vector> load_pair(const float* from) {
  return {load<Vector>(from), load<Vector>(from + 16)};
}

template <typename Vector>
SF_HOST_DEVICE void store_pair(float* to, const EvenOdd<Vector>& x) {
  store(to, x.even);
  store(to + 16, x.odd);
}

SF_HOST_DEVICE Bits as_bits(Numbers x) { return reinterpret_cast<Bits>(x); }
SF_HOST_DEVICE Bits as_bits(__m512i x) { return reinterpret_cast<Bits>(x); }
SF_HOST_DEVICE Numbers as_numbers(Bits x) { return reinterpret_cast<Numbers>(x); }
SF_HOST_DEVICE __m512i as_m512i(Bits x) { return reinterpret_cast<__m512i>(x); }

// A vector of VALUE in all lanes, broadcast by a load, which costs nothing. Compilers would build it from an immediate
// at each use, on the port that also shuffles.
template <uint32_t VALUE>
SF_HOST_DEVICE Bits broadcast() {
  static constexpr uint32_t value = VALUE;
  Bits x;
  asm("vpbroadcastd %1, %0" : "=v"(x) : "m"(value));
  return x;
}

SF_HOST_DEVICE Numbers broadcast(float x) { return _mm512_set1_ps(x); }

// (a & MASK) | (b & ~MASK)
template <uint32_t MASK>
SF_HOST_DEVICE Bits blend(Bits a, Bits b) {
  return as_bits(_mm512_ternarylogic_epi32(as_m512i(a), as_m512i(b), as_m512i(broadcast<MASK>()), 0xE4));
}

// (a & MASK) | VALUE
template <uint32_t MASK, uint32_t VALUE>
SF_HOST_DEVICE Bits masked_or(Bits a) {
  return as_bits(
      _mm512_ternarylogic_epi32(as_m512i(a), as_m512i(broadcast<MASK>()), as_m512i(broadcast<VALUE>()), 0xEA));
}

// (a ^ b) & MASK
template <uint32_t MASK>
SF_HOST_DEVICE Bits masked_xor(Bits a, Bits b) {
  return as_bits(_mm512_ternarylogic_epi32(as_m512i(a), as_m512i(b), as_m512i(broadcast<MASK>()), 0x28));
}

// If one operand is NaN the result is `b`.
SF_HOST_DEVICE Numbers maximum(Numbers a, Numbers b) { return _mm512_max_ps(a, b); }
SF_HOST_DEVICE Numbers minimum(Numbers a, Numbers b) { return _mm512_min_ps(a, b); }
// The larger magnitude, without a sign or with the sign of `a`. If one operand is NaN the result is the other one's.
SF_HOST_DEVICE Numbers max_magnitude(Numbers a, Numbers b) { return _mm512_range_ps(a, b, 0b1011); }
SF_HOST_DEVICE Numbers max_magnitude_signed(Numbers a, Numbers b) { return _mm512_range_ps(a, b, 0b0011); }
SF_HOST_DEVICE Numbers square_root(Numbers x) { return _mm512_sqrt_ps(x); }
SF_HOST_DEVICE Numbers multiply_add(Numbers a, Numbers b, Numbers c) { return _mm512_fmadd_ps(a, b, c); }

// Shifts of 16-bit lanes.
template <int COUNT>
SF_HOST_DEVICE Bits shift_words_left(Bits x) {
  return as_bits(_mm512_slli_epi16(as_m512i(x), COUNT));
}
template <int COUNT>
SF_HOST_DEVICE Bits shift_words_right(Bits x) {
  return as_bits(_mm512_srli_epi16(as_m512i(x), COUNT));
}
template <int COUNT>
SF_HOST_DEVICE Bits shift_words_right_signed(Bits x) {
  return as_bits(_mm512_srai_epi16(as_m512i(x), COUNT));
}

SF_HOST_DEVICE Bits max_bytes(Bits a, Bits b) { return as_bits(_mm512_max_epu8(as_m512i(a), as_m512i(b))); }

// The upper 16 bits of 32 numbers, in order.
SF_HOST_DEVICE Bits upper_halves(const EvenOdd<Bits>& x) {
  // (b & mask) | (a & ~mask): the result takes the register of `a`, which is needed for nothing else
  return as_bits(
      _mm512_ternarylogic_epi32(as_m512i(x.even >> 16), as_m512i(x.odd), as_m512i(broadcast<0xFFFF0000>()), 0xD8));
}

// The same number, of whose origin the compiler knows nothing: so it addresses arrays of different elements by one
// counter, instead of one for each of them.
SF_HOST_DEVICE int64_t hidden(int64_t x) {
  asm("" : "+r"(x));
  return x;
}

// Sixteen float16 numbers.
SF_HOST_DEVICE Numbers from_float16(__m256i words) { return _mm512_cvtph_ps(words); }

// The first (HALF = 0) or the last sixteen (1) of 32 float16 numbers.
template <int HALF>
SF_HOST_DEVICE Numbers from_float16_words(Bits words) {
  return from_float16(_mm512_extracti64x4_epi64(as_m512i(words), HALF));
}

// Convert 32 numbers in the order of memory to those at even and at odd places, and back.
SF_HOST_DEVICE EvenOdd<Numbers> deinterleave(const EvenOdd<Numbers>& in_order) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return {_mm512_permutex2var_ps(in_order.even, even, in_order.odd),
          _mm512_permutex2var_ps(in_order.even, odd, in_order.odd)};
}

SF_HOST_DEVICE EvenOdd<Bits> interleave(const EvenOdd<Bits>& x) {
  const __m512i first = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i second = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
  return {as_bits(_mm512_permutex2var_epi32(as_m512i(x.even), first, as_m512i(x.odd))),
          as_bits(_mm512_permutex2var_epi32(as_m512i(x.even), second, as_m512i(x.odd)))};
}

// The lower bytes of the 16-bit lanes of `first`, then the upper bytes of the lanes of `second`.
SF_HOST_DEVICE Bits pack_bytes(Bits first, Bits second) {
  const __m512i apart = _mm512_set4_epi32(0x0F0D0B09, 0x07050301, 0x0E0C0A08, 0x06040200);
  const __m512i in_order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
  return as_bits(
      _mm512_permutexvar_epi64(in_order, _mm512_shuffle_epi8(as_m512i(blend<0x00FF00FF>(first, second)), apart)));
}

}  // namespace
}  // namespace sf

#endif
