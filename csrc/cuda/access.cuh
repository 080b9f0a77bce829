// Every access to a per-element buffer goes through here, so that the host-run kernel can count the bytes it moves.
#pragma once

#ifndef SF_COUNT_BYTES
#define SF_COUNT_BYTES(bytes)
#endif

namespace sf {

constexpr int kVector = 4;  // floats in a 128-bit access

__device__ __forceinline__ float4 load4(const float* p) {
  SF_COUNT_BYTES(16);
  return *reinterpret_cast<const float4*>(p);
}

__device__ __forceinline__ void store4(float* p, const float4& x) {
  SF_COUNT_BYTES(16);
  *reinterpret_cast<float4*>(p) = x;
}

__device__ __forceinline__ float load1(const float* p) {
  SF_COUNT_BYTES(4);
  return *p;
}

__device__ __forceinline__ void store1(float* p, float x) {
  SF_COUNT_BYTES(4);
  *p = x;
}

}  // namespace sf
