// Exact sums of squares of float32 numbers, as integers in the digits of base 2^32. Integers may be added in any order
// and by anybody (threads, blocks, tables, ranks): a sum depends on its numbers alone, and it becomes one float64,
// rounded to nearest, at the end. docs/numerics.md draws it; stackelberg_fused/numerics/exact_sum.py is the same in
// PyTorch, triton_kernels/exact_sum.py in Triton.
#pragma once

#include "host_device.h"
#include "tables.h"

namespace sf {

constexpr int kDigitBits = 32;
constexpr int64_t kDigitMask = (int64_t{1} << kDigitBits) - 1;
// Digit i counts units of 2^(kLowestExponent + 32 * i). Squares lie between 2^-298 and 2^256; a part of a sum may begin
// below, and the top digits leave room for carries and let any part have three digits.
constexpr int kLowestExponent = -384;
constexpr int kDigits = 23;

// Between carries a digit is any int64: a tile adds less than 2^36 to it, so 2^27 tiles may.
struct ExactSum {
  int64_t digit[kDigits];
  int64_t infinities, nans;  // numbers that no digit counts
};
constexpr int kExactSumWords = kDigits + 2;
static_assert(sizeof(ExactSum) == kExactSumWords * sizeof(int64_t));

// What the host sees has room for squares of float64 numbers too (numerics/exact_sum.py): the digits above are some of
// its digits, and the counts its last words.
constexpr int kHostWords = 138, kFirstHostDigit = 59;

// Sums that many blocks add to are spread over this many copies, all zero between launches.
constexpr int kSumCopies = 16;

// The bits of a float32 without its sign and shifted up: 24 of the mantissa, 8 of the exponent.
SF_HOST_DEVICE uint32_t twice_magnitude(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits << 1;
}
constexpr uint32_t kTwiceInfinity = 0xFF000000u;

// The exponent of a float32, as its bits have it; subnormal numbers have that of the smallest normal ones.
SF_HOST_DEVICE int biased_exponent(uint32_t twice_magnitude) {
  const int exponent = static_cast<int>(twice_magnitude >> 24);
  return exponent ? exponent : 1;
}

SF_HOST_DEVICE double power_of_two(int exponent) {
  const int64_t bits = static_cast<int64_t>(exponent + 1023) << 52;
  double power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  return power;
}

// A number as three digits, the lowest of them at `first`.
struct Part {
  int first;
  int64_t digit[3];
};

// k * 2^exponent, which an ExactSum can hold.
SF_HOST_DEVICE Part part_of(int64_t k, int exponent) {
  const int place = exponent - kLowestExponent, shift = place % kDigitBits;
  const int64_t low = (k & kDigitMask) << shift, high = (k >> kDigitBits) * (int64_t{1} << shift);
  return {place / kDigitBits, {low & kDigitMask, (low >> kDigitBits) + (high & kDigitMask), high >> kDigitBits}};
}

SF_HOST_DEVICE int bit_length(int64_t x) {
#if defined(__CUDA_ARCH__)
  return 64 - __clzll(x);
#else
  return 64 - __builtin_clzll(static_cast<unsigned long long>(x));
#endif
}

// The highest of the digits that are not zero, the two below it, and whether any below those is not zero.
struct LeadingDigits {
  int place;  // of the first
  int64_t digit[3];
  bool more;
};

// Carries, after which digits are in [0, 2^32), and returns the leading ones.
SF_HOST_DEVICE LeadingDigits carry(int64_t* digit) {
  LeadingDigits leading = {0, {0, 0, 0}, false};
  int64_t carried = 0, below[2] = {0, 0};
  bool more = false;
  for (int i = 0; i < kDigits; ++i) {
    const int64_t sum = digit[i] + carried;
    const int64_t here = sum & kDigitMask;
    carried = sum >> kDigitBits;
    digit[i] = here;
    if (here) leading = {i, {here, below[0], below[1]}, more};
    more |= below[1] != 0;
    below[1] = below[0], below[0] = here;
  }
  return leading;
}

// The float64 that is nearest to the sum, of two the even one; infinite or NaN if a number was. Carries.
SF_HOST_DEVICE double round_sum(ExactSum& sum) {
  const LeadingDigits leading = carry(sum.digit);
  if (sum.nans) return __builtin_nan("");
  if (sum.infinities) return __builtin_huge_val();
  const int64_t first = leading.digit[0];
  if (!first) return 0.0;
  // 62 bits hold the first digit and what follows it; the last one stands for all that is lost
  const int bits = bit_length(first);
  const int64_t rest = leading.digit[1] << 31 | leading.digit[2] >> 1;
  const int64_t lost = (rest & ((int64_t{1} << (bits + 1)) - 1)) | (leading.digit[2] & 1);
  const int64_t top = first << (62 - bits) | rest >> (bits + 1) | (lost || leading.more);
  return static_cast<double>(top) * power_of_two(kLowestExponent + kDigitBits * leading.place - (62 - bits));
}

// The sum of squares of float32 numbers that the host's words hold.
SF_HOST_DEVICE ExactSum read_sum(const int64_t* words) {
  ExactSum sum;
  for (int i = 0; i < kDigits; ++i) sum.digit[i] = words[kFirstHostDigit + i];
  sum.infinities = words[kHostWords - 2];
  sum.nans = words[kHostWords - 1];
  return sum;
}

// Rounds a sum and writes it where the host reads it.
SF_HOST_DEVICE double conclude_sum(ExactSum& sum, int64_t* words) {
  const double rounded = round_sum(sum);
  for (int i = 0; i < kDigits; ++i) words[kFirstHostDigit + i] = sum.digit[i];
  words[kHostWords - 2] = sum.infinities;
  words[kHostWords - 1] = sum.nans;
  return rounded;
}

}  // namespace sf
