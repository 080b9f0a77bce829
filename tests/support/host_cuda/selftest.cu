// Kernels that show what the shim does and refuses, and comparisons of in_range_math.cuh with codec.h and IEEE
// arithmetic; tests/csrc/test_host_cuda.py calls them.
#include "codec.h"

static int seed_error = 0;  // ulp
#define SF_SEED(x) (std::isfinite(x) ? sf::float_of(sf::bits_of(x) + seed_error) : (x))
#include "cuda/in_range_math.cuh"
#include "update_rule.h"

constexpr int kWarp = 32;

__device__ float sum_over_warp(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_down_sync(0xffffffffu, x, offset);
  return x;
}

// The usual two-stage reduction: out[block] = sum of the block's share of `in`.
__global__ void sum_blocks(const float* in, float* out, int count) {
  __shared__ float partial[kWarp];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float x = sum_over_warp(i < count ? in[i] : 0);
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  if (warp == 0) {
    const int warps = (blockDim.x + kWarp - 1) / kWarp;
    x = sum_over_warp(lane < warps ? partial[lane] : 0);
    if (lane == 0) out[blockIdx.x] = x;
  }
}

// out[k * 32 + lane] for each kind of shuffle k.
__global__ void shuffle_lanes(int* out) {
  const int lane = threadIdx.x;
  out[lane] = __shfl_down_sync(0xffffffffu, lane, 3);
  out[32 + lane] = __shfl_down_sync(0xffffffffu, lane, 3, 8);
  out[64 + lane] = __shfl_xor_sync(0xffffffffu, lane, 5);
  out[96 + lane] = __shfl_sync(0xffffffffu, lane, 7);
  out[128 + lane] = __shfl_sync(0xffffffffu, lane, 2, 8);
  const double wide = __shfl_xor_sync(0xffffffffu, lane + 0.5, 1);
  out[160 + lane] = static_cast<int>(wide * 2);
  // the two halves of a warp on their own
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  if (lane < 16) {
    out[192 + lane] = __shfl_xor_sync(half, lane, 1);
  } else {
    __syncwarp(half);
    out[192 + lane] = __shfl_xor_sync(half, lane, 2);
  }
}

// Sum, smallest and largest of lane + 5, or of a large number in lane 0, over the warp, and one of them over each half.
__global__ void reduce_lanes(unsigned* out) {
  const unsigned lane = threadIdx.x, all = 0xffffffffu, half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  const unsigned value = lane ? lane + 5 : 0xfffffff0u;
  out[lane] = __reduce_add_sync(all, value);
  out[32 + lane] = __reduce_min_sync(all, value);
  out[64 + lane] = __reduce_max_sync(all, value);
  if (lane < 16) {
    out[96 + lane] = __reduce_max_sync(half, value);
  } else {
    out[96 + lane] = __reduce_min_sync(half, value);
  }
}

// Asks whether any lane is number 0, 16 or 32: out[k * 32 + lane] for the warp, out[(3 + k) * 32 + lane] for the lane's
// half of it.
__global__ void ask_lanes(int* out) {
  const int lane = threadIdx.x;
  for (int k = 0; k < 33; k += 16) {
    out[k * 2 + lane] = __any_sync(0xffffffffu, lane == k);
    const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    if (lane < 16) {
      out[96 + k * 2 + lane] = __any_sync(half, lane == k);
    } else {
      out[96 + k * 2 + lane] = __any_sync(half, lane == k);
    }
  }
}

// Every thread reads the value that its neighbour wrote before the barrier.
__global__ void rotate(int* out) {
  __shared__ int values[1024];
  for (int round = 0; round < 3; ++round) {
    values[threadIdx.x] = threadIdx.x + round;
    __syncthreads();
    out[threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
  }
}

__global__ void return_before_barrier(int count) {
  if (threadIdx.x >= static_cast<unsigned>(count)) return;
  __syncthreads();
}

__global__ void wait_at_different_barriers() {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void shuffle_with_absent_lane() {
  if (threadIdx.x < 16) __shfl_down_sync(0xffffffffu, 1, 1);
}

__global__ void read_lane_outside_mask() {
  if (threadIdx.x < 16) __shfl_sync(0x0000ffffu, 1, 20);
}

__global__ void read_vector(const float* in) { SF_ON_ACCESS(in, 16); }

__global__ void index_threads(unsigned* out) {
  const unsigned block = blockIdx.x + gridDim.x * blockIdx.y;
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

extern "C" {
void set_order(int order, uint64_t seed) { sf_host::set_order(static_cast<sf_host::Order>(order), seed); }

const char* last_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

void run_sum_blocks(const float* in, float* out, int count, int blocks, int threads) {
  SF_LAUNCH((sum_blocks), blocks, threads, 0, in, out, count);
}

void run_shuffle_lanes(int* out) { SF_LAUNCH((shuffle_lanes), 1, 32, 0, out); }

void run_reduce_lanes(unsigned* out) { SF_LAUNCH((reduce_lanes), 1, 32, 0, out); }

void run_ask_lanes(int* out) { SF_LAUNCH((ask_lanes), 1, 32, 0, out); }

uint32_t byte_perm(uint32_t low, uint32_t high, uint32_t selector) { return __byte_perm(low, high, selector); }

void run_rotate(int* out, int threads) { SF_LAUNCH((rotate), 4, threads, 0, out); }

void run_index_threads(unsigned* out) { SF_LAUNCH((index_threads), dim3(3, 2), dim3(4, 5, 2), 0, out); }

void run_misuse(int which, const float* in) {
  switch (which) {
    case 0:
      SF_LAUNCH((return_before_barrier), 1, 64, 0, 40);
      break;
    case 1:
      SF_LAUNCH((wait_at_different_barriers), 1, 64, 0);
      break;
    case 2:
      SF_LAUNCH((shuffle_with_absent_lane), 1, 32, 0);
      break;
    case 3:
      SF_LAUNCH((read_lane_outside_mask), 1, 32, 0);
      break;
    case 4:
      SF_LAUNCH((read_vector), 1, 1, 0, in);
      break;
    case 5:
      SF_LAUNCH((rotate), 1, 2048, 0, nullptr);
      break;
  }
}

// Counts the codes that in_range_math.cuh decodes differently than codec.h, and the numbers that it encodes
// differently.
int64_t count_differences(const float* in, const uint32_t* random, int64_t count) {
  int64_t differences = 0;
  const auto compare = [&](auto format) {
    using CODE = decltype(format);
    for (uint32_t c = 0; c < 256; ++c) {
      const bool is_special = sf::is_special<CODE>(c);
      for (int shift = 0; shift < 32; shift += 8) {
        differences += (sf::special_bytes<CODE>(c << shift) >> shift) != (is_special ? 0x80u : 0u);
      }
      constexpr float largest = CODE::is_signed ? sf::InRange::kLargest : sf::InRange::kLargestSecond;
      for (int scale = 0; scale <= sf::scale_of(sf::bits_of(largest)) && !is_special; ++scale) {
        const float of_block = sf::scale_value(static_cast<uint8_t>(scale));
        const uint32_t wanted = sf::bits_of(sf::decode<CODE>(c, of_block));
        for (int k = 0; k < 4; ++k) {
          const uint32_t word = c << 8 * k | ~(0xFFu << 8 * k);
          differences += sf::bits_of(sf::decode_in_range<CODE>(word, k, sf::decode_factor<CODE>(of_block))) != wanted;
        }
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      // scales from the number's own to the largest; second moments are never negative
      const float x = CODE::is_signed ? in[i] : sf::float_of(sf::bits_of(in[i]) & sf::kMagnitude);
      const uint32_t magnitude = sf::bits_of(x) & sf::kMagnitude;
      constexpr float largest = CODE::is_signed ? sf::InRange::kLargest : sf::InRange::kLargestSecond;
      if (magnitude > sf::bits_of(largest)) continue;
      for (int s = sf::scale_of(magnitude); s <= sf::scale_of(sf::bits_of(largest)); s += 1 + s % 3) {
        const auto scale = static_cast<uint8_t>(s);
        const uint32_t code = sf::encode_in_range<CODE>(x, sf::encode_factor<CODE>(scale), random[i] << 8) >> 24;
        const uint32_t wanted = sf::encode<CODE>(x, sf::inverse_scale(scale), random[i]);
        differences += code != wanted && !(!CODE::is_signed && code == 0 && x != 0 && wanted == 1);
      }
    }
  };
  compare(sf::FirstMoment());
  compare(sf::SecondMoment());
  return differences;
}

// Counts the quotients by roots that are not correctly rounded, with seeds that are `ulp` off.
int64_t count_ratio_differences(const float* m, const float* v, const float* eps, int64_t count, int ulp) {
  seed_error = ulp;
  int64_t differences = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float ratio = sf::InRange::ratio(m[i], v[i], eps[i]);
    differences += sf::bits_of(ratio) != sf::bits_of(sf::Ieee::ratio(m[i], v[i], eps[i]));
  }
  return differences;
}

uint16_t to_bfloat16(float x) { return __float2bfloat16_rn(x).bits; }
float from_bfloat16(uint16_t bits) { return __bfloat162float({bits}); }
}
