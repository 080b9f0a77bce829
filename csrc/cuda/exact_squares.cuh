// Adds the squares of a tile to an exact sum, by a block of kLanes threads.
//
// Every number is scaled by the same power of two, by which the largest of the tile becomes a 54-bit integer, and so
// does each number down to 2^-30 of it. Halves of 27 bits have products that 16 of a thread cannot overflow 64 bits
// with. So an element takes one conversion to a 64-bit integer, three multiplications of 32-bit ones, and no operation
// of doubles, which most GPUs are slow at. A tile with still smaller numbers is gone through once more for each further
// 31 powers of two.
#pragma once

#include "cuda/block_sum.cuh"
#include "exact_sum.h"
#include "tables.h"

namespace sf {

constexpr int kSquareBits = 27;  // of a half, and of what a thread hands to its warp
constexpr uint32_t kSquareMask = (1u << kSquareBits) - 1;
constexpr int kSquareParts = 5;  // the square of a 54-bit integer is less than 2^108; a tile has 2^12
constexpr int kWindow = 31;      // powers of two that one pass takes
constexpr int kWarps = kLanes / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

struct SquaresScratch {
  uint32_t most[kWarps], least[kWarps];
  uint32_t part[kSquareParts][kWarps];
};

// The index of the calling thread, read so late that no register holds what follows from it before.
__device__ __forceinline__ int thread_now() {
#if defined(__CUDA_ARCH__)
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#else
  return static_cast<int>(threadIdx.x);
#endif
}

__device__ __forceinline__ void add_to_word(int64_t& word, int64_t x) {
  if (x) atomicAdd(reinterpret_cast<unsigned long long*>(&word), static_cast<unsigned long long>(x));
}

// The products of the halves of a thread's integers.
struct SquareSums {
  uint64_t high = 0, middle = 0, low = 0;

  __device__ __forceinline__ void take(uint64_t integer) {
    const auto upper = static_cast<uint32_t>(integer >> kSquareBits);
    const uint32_t lower = static_cast<uint32_t>(integer) & kSquareMask;
    high += static_cast<uint64_t>(upper) * upper;
    middle += static_cast<uint64_t>(upper) * lower;
    low += static_cast<uint64_t>(lower) * lower;
  }

  // Sums up over the warp, for which 27 bits leave room in 32.
  __device__ __forceinline__ void hand_over(int thread, SquaresScratch& scratch) const {
    uint64_t rest = low;
#pragma unroll
    for (int i = 0; i < kSquareParts; ++i) {
      const uint32_t sum = __reduce_add_sync(kAllLanes, static_cast<uint32_t>(rest) & kSquareMask);
      if (thread % kWarp == 0) scratch.part[i][thread / kWarp] = sum;
      rest = (rest >> kSquareBits) + (i == 0 ? 2 * middle : i == 1 ? high : 0);
    }
  }
};

// Part i of a tile and the one after it as one integer, if there is one.
__device__ __forceinline__ int64_t two_parts(const SquaresScratch& scratch, int i) {
  int64_t sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    sum += scratch.part[i][warp];
    if (i + 1 < kSquareParts) sum += static_cast<int64_t>(scratch.part[i + 1][warp]) << kSquareBits;
  }
  return sum;
}

// Adds the squares of the numbers that visit(take) calls take(x) with, at most 16 in each thread, to a sum in global
// memory. Every thread of the block has to call it, and synchronize before anything that the sum has to precede.
template <typename Visit>
__device__ __forceinline__ void add_squares(int thread, const Visit& visit, SquaresScratch& scratch, ExactSum& sum) {
  uint32_t most = 0, least = ~0u;  // least is one too small, so that zeros are the largest
  visit([&](float x) {
    const uint32_t magnitude = twice_magnitude(x);
    most = magnitude > most ? magnitude : most;
    least = magnitude - 1 < least ? magnitude - 1 : least;
  });
  most = __reduce_max_sync(kAllLanes, most), least = __reduce_min_sync(kAllLanes, least);
  if (thread % kWarp == 0) scratch.most[thread / kWarp] = most, scratch.least[thread / kWarp] = least;
  __syncthreads();
  most = __reduce_max_sync(kAllLanes, scratch.most[thread % kWarps]);
  least = __reduce_min_sync(kAllLanes, scratch.least[thread % kWarps]);
  if (!most) return;
  if (most >= kTwiceInfinity) {
    int64_t infinities = 0, nans = 0;
    visit([&](float x) {
      infinities += twice_magnitude(x) == kTwiceInfinity;
      nans += twice_magnitude(x) > kTwiceInfinity;
    });
    add_to_word(sum.infinities, infinities);
    add_to_word(sum.nans, nans);
    return;
  }
  const int smallest = biased_exponent(least + 1);
  for (int largest = biased_exponent(most);; largest -= kWindow) {
    // numbers of exponent `largest` become 54-bit integers, as far as float32 has that power of two
    const int wanted = 180 - largest, shift = wanted < 127 ? wanted : 127;
    const float scale = __int_as_float((shift + 127) << 23);
    const bool is_last = smallest >= 150 - shift;
    SquareSums squares;
    int exponent = shift;
    if (is_last && largest == biased_exponent(most)) {
      visit([&](float x) { squares.take(__float2ull_rz(fabsf(x) * scale)); });
    } else {
      exponent = wanted;
      const float more = __int_as_float((wanted - shift + 127) << 23);
      visit([&](float x) {
        const int below = largest - biased_exponent(twice_magnitude(x));
        if (0 <= below && below < kWindow) squares.take(__float2ull_rz(fabsf(x) * scale * more));
      });
    }
    squares.hand_over(thread, scratch);
    __syncthreads();
    if (thread < (kSquareParts + 1) / 2) {
      const Part part = part_of(two_parts(scratch, 2 * thread), 2 * (kSquareBits * thread - exponent));
#pragma unroll
      for (int j = 0; j < 3; ++j) add_to_word(sum.digit[part.first + j], part.digit[j]);
    }
    if (is_last || largest - kWindow < smallest) return;
    __syncthreads();  // orders these loads before the stores of the next pass
  }
}

// Adds up the copies of a sum, into which all blocks have added, and clears them. Each thread takes a word, if it
// is one; synchronize before `total`, in shared memory, is read.
__device__ __forceinline__ void collect_copies(int word, ExactSum* copies, int stride, ExactSum& total) {
  if (word < 0 || word >= kExactSumWords) return;
  int64_t sum = 0;
  for (int copy = 0; copy < kSumCopies; ++copy) {
    int64_t* const at = reinterpret_cast<int64_t*>(copies + copy * stride) + word;
    // other blocks added to it, past the first-level cache, which is not coherent with that
    sum += __ldcg(reinterpret_cast<const long long*>(at));
    *at = 0;
  }
  reinterpret_cast<int64_t*>(&total)[word] = sum;
}

}  // namespace sf
