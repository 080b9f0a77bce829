// Lets a C++ compiler compile a CUDA source for the host without a header of the toolkit; `-include` puts it in front
// of the source. Threads of a block are fibers (fibers.cpp), so barriers and shuffles really wait; blocks run one after
// another. Misuse that would hang or fault on a GPU (a barrier that some thread never reaches, a misaligned access)
// becomes the launch's error.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace sf_host {

struct Thread {
  dim3 index;
  unsigned rank;  // within the block
};

extern const Thread* self;  // the thread that is running
extern dim3 block_index, block_dim, grid_dim;

void launch(dim3 grid, dim3 block, const std::function<void()>& kernel);
void sync_block(const char* file, int line);
void sync_warp(unsigned mask, const char* file, int line);
// Every lane of `mask` offers 8 bytes and gets those of lane `source`.
uint64_t exchange(unsigned mask, uint64_t offer, unsigned source, const char* file, int line);
// Returns true if `says` is true in any lane of `mask`.
bool any(unsigned mask, bool says, const char* file, int line);
// Returns what `combine` makes of the values of all lanes of `mask`.
unsigned reduce(unsigned mask, unsigned value, unsigned (*combine)(unsigned, unsigned), const char* file, int line);
enum class Order { kForward, kReverse, kShuffled };
// Sets the order in which blocks, and threads between barriers, run from now on.
void set_order(Order order, uint64_t seed);

struct Counters {
  int64_t launches, blocks;
  int64_t bytes;         // moved by accesses to per-element buffers
  int64_t vector_bytes;  // those of them moved 16 at a time
};
extern Counters counters;

// Ends the launch from within a thread, which is not resumed.
[[noreturn]] void stop(const char* why);

// Counts an access to a per-element buffer; a misaligned one stops the launch.
inline void on_access(const void* pointer, int bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes) stop("misaligned address");
  counters.bytes += bytes;
  if (bytes == 16) counters.vector_bytes += bytes;
}

template <typename T>
T shuffle(unsigned mask, T value, unsigned source, const char* file, int line) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned lanes(unsigned mask = 0xffffffffu) { return mask; }

// The lane that a shuffle reads; outside of its segment of `width` lanes a lane keeps its own value, as on a GPU.
inline unsigned lane() { return self->rank % 32; }
inline unsigned down_lane(unsigned delta, unsigned width = 32) {
  return lane() % width + delta < width ? lane() + delta : lane();
}
inline unsigned xor_lane(unsigned flip, unsigned width = 32) {
  const unsigned source = lane() ^ flip;
  return source / width <= lane() / width ? source : lane();
}
inline unsigned broadcast_lane(unsigned source, unsigned width = 32) { return lane() / width * width + source % width; }

}  // namespace sf_host

#define SF_LAUNCH(kernel, grid, block, stream, ...) ::sf_host::launch(grid, block, [&] { kernel(__VA_ARGS__); })
#define SF_ON_ACCESS(pointer, bytes) ::sf_host::on_access(pointer, bytes)

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
// blocks run one after another, so one copy per variable is enough; like a GPU's, it outlives a block's values
#define __shared__ static

#define threadIdx (::sf_host::self->index)
#define blockIdx (::sf_host::block_index)
#define blockDim (::sf_host::block_dim)
#define gridDim (::sf_host::grid_dim)
#define warpSize 32

#define __syncthreads() ::sf_host::sync_block(__FILE__, __LINE__)
#define __syncwarp(...) ::sf_host::sync_warp(::sf_host::lanes(__VA_ARGS__), __FILE__, __LINE__)
#define __shfl_down_sync(mask, value, ...) \
  ::sf_host::shuffle(mask, value, ::sf_host::down_lane(__VA_ARGS__), __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, ...) \
  ::sf_host::shuffle(mask, value, ::sf_host::xor_lane(__VA_ARGS__), __FILE__, __LINE__)
#define __shfl_sync(mask, value, ...) \
  ::sf_host::shuffle(mask, value, ::sf_host::broadcast_lane(__VA_ARGS__), __FILE__, __LINE__)
#define SF_REDUCE(mask, value, expression) \
  ::sf_host::reduce(mask, value, [](unsigned a, unsigned b) { return expression; }, __FILE__, __LINE__)
#define __reduce_add_sync(mask, value) SF_REDUCE(mask, value, a + b)
#define __reduce_min_sync(mask, value) SF_REDUCE(mask, value, a < b ? a : b)
#define __reduce_max_sync(mask, value) SF_REDUCE(mask, value, a > b ? a : b)
#define __any_sync(mask, says) ::sf_host::any(mask, says, __FILE__, __LINE__)

// Byte k of the result is that byte of the eight in `low` and `high` which the k-th digit of `selector` names.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int k = 0; k < 4; ++k) result |= static_cast<uint32_t>(bytes >> (selector >> 4 * k & 7) * 8 & 0xFF) << 8 * k;
  return result;
}

// blocks run one after another and a thread runs until it waits, so every store is visible at once
#define __threadfence() static_cast<void>(0)
template <typename T>
inline T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}

inline float __int_as_float(int bits) {
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}
inline unsigned long long __float2ull_rz(float x) { return static_cast<unsigned long long>(x); }

struct alignas(16) float4 {
  float x, y, z, w;
};

struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// Round to nearest, ties to even; every NaN becomes 0x7fff, as on a GPU.
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
// The error of the launches since the last call, which clears it.
cudaError_t cudaGetLastError();
// Text of the error that cudaGetLastError returned last.
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDriverGetVersion(int* version);
