// Every access to a per-element buffer goes through here, so that the host-run kernel can count the bytes it moves and
// refuse an address that a GPU would fault on.
#pragma once

#include "codec.h"

#ifndef SF_ON_ACCESS
// A pointer out of a table could point anywhere; told otherwise, the compiler leaves out generic addressing.
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

// So many bytes at a time: 1, 2, 4, 8 or a multiple of 16, on a boundary of that size or of 16.
template <int BYTES>
struct Words {
  uint32_t word[(BYTES + 3) / 4];
};

template <int BYTES>
__device__ __forceinline__ Words<BYTES> load_words(int64_t base, int64_t offset) {
  // a pointer moved along, not a sum made a pointer: of that the compiler would not believe where it points
  const char* const at = reinterpret_cast<const char*>(base) + offset;
  Words<BYTES> found;
  if constexpr (BYTES % 16 == 0) {
#pragma unroll
    for (int k = 0; k < BYTES / 16; ++k) {
      const float4 x = load4(reinterpret_cast<const float*>(at) + 4 * k);
      found.word[4 * k] = bits_of(x.x), found.word[4 * k + 1] = bits_of(x.y);
      found.word[4 * k + 2] = bits_of(x.z), found.word[4 * k + 3] = bits_of(x.w);
    }
  } else if constexpr (BYTES == 8) {
    const auto* p = reinterpret_cast<const uint64_t*>(at);
    SF_ON_ACCESS(p, 8);
    const uint64_t x = *p;
    found.word[0] = static_cast<uint32_t>(x), found.word[1] = static_cast<uint32_t>(x >> 32);
  } else if constexpr (BYTES == 4) {
    const auto* p = reinterpret_cast<const uint32_t*>(at);
    SF_ON_ACCESS(p, 4);
    found.word[0] = *p;
  } else if constexpr (BYTES == 2) {
    const auto* p = reinterpret_cast<const uint16_t*>(at);
    SF_ON_ACCESS(p, 2);
    found.word[0] = *p;
  } else {
    const auto* p = reinterpret_cast<const uint8_t*>(at);
    SF_ON_ACCESS(p, 1);
    found.word[0] = *p;
  }
  return found;
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
