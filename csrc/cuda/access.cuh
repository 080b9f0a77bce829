// All accesses to per-element buffers, so that the kernels compiled for the host (tests/support/host_cuda) can count
// the bytes that they move and refuse an address on which a GPU would fault.
#pragma once

#include "codec.h"

#ifndef SF_ON_ACCESS
// The compiler cannot know that an address from a table is in global memory; the assumption avoids generic addressing.
#define SF_ON_ACCESS(pointer, bytes) __builtin_assume(__isGlobal(pointer))
#endif

namespace sf {

constexpr int kVector = 4;  // floats in a 128-bit access

__device__ __forceinline__ float4 load4(const float* p) {
  SF_ON_ACCESS(p, 16);
  return *reinterpret_cast<const float4*>(p);
}

__device__ __forceinline__ void store4(float* p, const float4& x) {
  SF_ON_ACCESS(p, 16);
  *reinterpret_cast<float4*>(p) = x;
}

__device__ __forceinline__ float load1(const float* p) {
  SF_ON_ACCESS(p, 4);
  return *p;
}

__device__ __forceinline__ void store1(float* p, float x) {
  SF_ON_ACCESS(p, 4);
  *p = x;
}

// BYTES bytes in registers: 1, 2, 4, 8 or a multiple of 16. In memory they are aligned to their size, at most to 16.
template <int BYTES>
struct Words {
  uint32_t word[(BYTES + 3) / 4];
};

template <int BYTES>
__device__ __forceinline__ Words<BYTES> load_words(int64_t base, int64_t offset) {
  // offset the pointer, not the integer: with a cast of the sum the compiler would ignore the assumption
  const char* const at = reinterpret_cast<const char*>(base) + offset;
  Words<BYTES> x;
  if constexpr (BYTES % 16 == 0) {
#pragma unroll
    for (int k = 0; k < BYTES / 16; ++k) {
      const float4 v = load4(reinterpret_cast<const float*>(at) + 4 * k);
      x.word[4 * k] = bits_of(v.x), x.word[4 * k + 1] = bits_of(v.y);
      x.word[4 * k + 2] = bits_of(v.z), x.word[4 * k + 3] = bits_of(v.w);
    }
  } else if constexpr (BYTES == 8) {
    const auto* p = reinterpret_cast<const uint64_t*>(at);
    SF_ON_ACCESS(p, 8);
    const uint64_t v = *p;
    x.word[0] = static_cast<uint32_t>(v), x.word[1] = static_cast<uint32_t>(v >> 32);
  } else if constexpr (BYTES == 4) {
    const auto* p = reinterpret_cast<const uint32_t*>(at);
    SF_ON_ACCESS(p, 4);
    x.word[0] = *p;
  } else if constexpr (BYTES == 2) {
    const auto* p = reinterpret_cast<const uint16_t*>(at);
    SF_ON_ACCESS(p, 2);
    x.word[0] = *p;
  } else {
    const auto* p = reinterpret_cast<const uint8_t*>(at);
    SF_ON_ACCESS(p, 1);
    x.word[0] = *p;
  }
  return x;
}

template <int BYTES>
__device__ __forceinline__ void store_words(int64_t base, int64_t offset, const Words<BYTES>& x) {
  char* const at = reinterpret_cast<char*>(base) + offset;
  if constexpr (BYTES % 16 == 0) {
#pragma unroll
    for (int k = 0; k < BYTES / 16; ++k) {
      store4(reinterpret_cast<float*>(at) + 4 * k, {float_of(x.word[4 * k]), float_of(x.word[4 * k + 1]),
                                                    float_of(x.word[4 * k + 2]), float_of(x.word[4 * k + 3])});
    }
  } else if constexpr (BYTES == 8) {
    auto* p = reinterpret_cast<uint64_t*>(at);
    SF_ON_ACCESS(p, 8);
    *p = static_cast<uint64_t>(x.word[1]) << 32 | x.word[0];
  } else if constexpr (BYTES == 4) {
    auto* p = reinterpret_cast<uint32_t*>(at);
    SF_ON_ACCESS(p, 4);
    *p = x.word[0];
  } else if constexpr (BYTES == 2) {
    auto* p = reinterpret_cast<uint16_t*>(at);
    SF_ON_ACCESS(p, 2);
    *p = static_cast<uint16_t>(x.word[0]);
  } else {
    auto* p = reinterpret_cast<uint8_t*>(at);
    SF_ON_ACCESS(p, 1);
    *p = static_cast<uint8_t>(x.word[0]);
  }
}

}  // namespace sf
