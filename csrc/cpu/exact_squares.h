// Adds the squares of a tile to an exact sum on the CPU, vectorised for the instruction set of the file that includes
// this.
//
// A square is exact in double. Adding 1.5 * 2^(52 + grid) rounds it to a multiple of 2^grid, which the bits of the
// result count, and what is left over is exact again. So two additions and two of integers split a square into two
// slices of 51 bits, whatever the order. The grid of a tile is that of its largest number, from which two slices reach
// 26 powers of two down; a tile with smaller numbers beside takes more of them.
#pragma once

#include <cstring>

#include "exact_sum.h"

namespace sf {
namespace {

constexpr int kSliceBits = 51;
// A slice of at most this many bits may be summed up over a tile: 2^50 * kTileElements is less than 2^63.
constexpr int kCountedBits = 50;

// Bits are counted modulo 2^64, which the sum of a tile's does not reach.
uint64_t double_bits(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

int64_t difference(uint64_t a, uint64_t b) { return static_cast<int64_t>(a - b); }

// Adding this rounds to multiples of 2^grid what is at most 2^(grid + 51).
double rounder(int grid) { return 1.5 * power_of_two(52 + grid); }

void add_part(ExactSum& sum, int64_t k, int exponent) {
  const Part part = part_of(k, exponent);
  for (int j = 0; j < 3; ++j) sum.digit[part.first + j] += part.digit[j];
}

// Takes off slices until the last one holds every bit, those of multiples of 2^lowest.
__attribute__((noinline)) void add_slices(const float* x, int64_t count, int grid, int lowest, ExactSum& sum) {
  double rest[kTileElements];
  for (int64_t i = 0; i < count; ++i) rest[i] = static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (;; grid -= kSliceBits) {
    const double to_grid = rounder(grid);
    uint64_t k = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double rounded = rest[i] + to_grid;
      k += double_bits(rounded);
      rest[i] -= rounded - to_grid;
    }
    add_part(sum, difference(k, count * double_bits(to_grid)), grid);
    if (grid <= lowest) return;
  }
}

// The largest and the smallest magnitude, but for zeros, of numbers that are not all zero. They are kept as signed
// integers, because not every instruction set compares unsigned ones; `smallest` is shifted, so that zeros are largest.
struct Range {
  static constexpr uint32_t kShift = 0x7FFFFFFF;
  int32_t largest = 0, smallest = kShift;

  void take(float x) {
    const uint32_t magnitude = twice_magnitude(x) >> 1;
    const auto is = static_cast<int32_t>(magnitude), shifted = static_cast<int32_t>(magnitude + kShift);
    largest = is > largest ? is : largest;
    smallest = shifted < smallest ? shifted : smallest;
  }
  bool is_finite() const { return 2u * static_cast<uint32_t>(largest) < kTwiceInfinity; }
  // Tells whether two slices hold all bits of the squares.
  bool fits(int grid_of_first) const {
    return is_finite() && grid() <= grid_of_first && grid_of_first - kSliceBits <= lowest();
  }
  // Squares are at most 2^(grid + 50), and multiples of 2^lowest.
  int grid() const { return 2 * (biased_exponent(2u * static_cast<uint32_t>(largest)) - 126) - kCountedBits; }
  int lowest() const { return 2 * (biased_exponent(2u * (static_cast<uint32_t>(smallest) - kShift)) - 150); }
};

// Adds two slices of each square if they hold all of it, and returns the range of the numbers.
Range add_two_slices(const float* x, int64_t count, int grid, ExactSum& sum) {
  const double to_grid = rounder(grid), to_lower = rounder(grid - kSliceBits);
  uint64_t upper = 0, lower = 0;
  Range range;
  for (int64_t i = 0; i < count; ++i) {
    range.take(x[i]);
    const double wide = x[i], square = wide * wide;
    const double rounded = square + to_grid;
    upper += double_bits(rounded);
    lower += double_bits((square - (rounded - to_grid)) + to_lower);
  }
  if (range.fits(grid)) {
    add_part(sum, difference(upper, count * double_bits(to_grid)), grid);
    add_part(sum, difference(lower, count * double_bits(to_lower)), grid - kSliceBits);
  }
  return range;
}

// Adds the squares of at most a tile of numbers.
void add_squares(const float* x, int64_t count, ExactSum& sum) {
  // A few numbers tell nearly always what suits all of them, so that memory is read once: the largest of a tile is
  // seldom 8 times the largest of these. Where it is, the tile is taken once more, from the cache.
  constexpr int64_t sampled = 64;
  Range range;
  for (int64_t i = 0; i < (count < sampled ? count : sampled); ++i) range.take(x[i]);
  const int margin = count > sampled ? 6 : 0, guess = range.is_finite() ? range.grid() + margin : 0;
  range = add_two_slices(x, count, guess, sum);
  if (!range.is_finite()) {
    for (int64_t i = 0; i < count; ++i) {
      sum.infinities += twice_magnitude(x[i]) == kTwiceInfinity;
      sum.nans += twice_magnitude(x[i]) > kTwiceInfinity;
    }
  } else if (range.largest && !range.fits(guess)) {
    add_slices(x, count, range.grid(), range.lowest(), sum);
  }
}

// Adds a sum to one that other threads add to as well.
void add_atomically(const ExactSum& sum, ExactSum& to) {
  const auto* from = reinterpret_cast<const int64_t*>(&sum);
  auto* into = reinterpret_cast<int64_t*>(&to);
  for (int i = 0; i < kExactSumWords; ++i) {
    if (from[i]) __atomic_fetch_add(into + i, from[i], __ATOMIC_RELAXED);
  }
}

}  // namespace
}  // namespace sf
