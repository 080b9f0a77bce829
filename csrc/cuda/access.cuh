// Every access to a per-element buffer goes through here, so that the host-run kernel can count the bytes it moves and
// refuse an address that a GPU would fault on.
#pragma once

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

}  // namespace sf
