// Quotients by InRange (csrc/cuda/in_range_math.cuh), which begins with approximate instructions. The interpreter runs
// this kernel with every result that the ISA allows those; on a GPU the program compares all significands with IEEE
// arithmetic, and prints how many roots and reciprocals differ.
#include <cstdio>

#include "cuda/in_range_math.cuh"

using sf::InRange;

extern "C" __global__ void ratios(const float* exp_avg, const float* second_moment, const float* eps, float* found) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  found[i] = InRange::ratio(exp_avg[i], second_moment[i], eps[i]);
}

// What the compiler makes of them.
extern "C" __global__ void root(float* x) { *x = __fsqrt_rn(*x); }
extern "C" __global__ void quotient(float* x, const float* y) { *x = __fdiv_rn(*x, *y); }

// Thread i takes significand i of both parities of the exponent. A root divided by root(x) is 1 only where that is
// right.
__global__ void compare(unsigned* wrong) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float x = sf::float_of((127u << 23) + i), root = __fsqrt_rn(x);
  if (InRange::ratio(root, x, 0.0f) != 1.0f) atomicAdd(&wrong[0], 1u);
  if (InRange::ratio(1.0f, 0.0f, x) != __frcp_rn(x)) atomicAdd(&wrong[1], 1u);
}

#ifdef SF_PROGRAM
int main() {
  unsigned* wrong;
  if (cudaMallocManaged(&wrong, 2 * sizeof *wrong)) return 1;
  wrong[0] = wrong[1] = 0;
  compare<<<(1u << 24) / 256, 256>>>(wrong);
  if (cudaDeviceSynchronize()) return 1;
  std::printf("roots %u\nreciprocals %u\n", wrong[0], wrong[1]);
}
#endif
