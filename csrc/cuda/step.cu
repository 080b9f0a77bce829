// One launch for any number of groups: block b updates tile first_tile + b, whatever parameter it belongs to.
#include "cuda/launch.cuh"

#include "cuda/access.cuh"
#include "cuda/step.h"
#include "row.h"
#include "summation.h"
#include "update_rule.h"

namespace sf {

// Two blocks on a multiprocessor leave 64 registers to a thread: enough, without spills, for two vectors of every
// buffer in flight under every rule, so that one block loads while the other computes.
constexpr int kThreads = 512;
constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kVectorsPerThread = kTileElements / (kThreads * kVector);
static_assert(kTileElements % (kThreads * kVector) == 0);

struct Buffers {
  float* param;
  const float* grad;
  float* exp_avg;
  float* exp_avg_sq;
  float* max_exp_avg_sq;
};

// Vectors need every buffer that the rule touches on a 16-byte boundary. Tile offsets keep it, so a record's
// addresses decide; those a rule does not use are 0.
__device__ __forceinline__ bool is_aligned(const Record& r) {
  return ((r.param | r.grad | r.exp_avg | r.exp_avg_sq | r.max_exp_avg_sq) & 15) == 0;
}

template <int RULE>
__device__ __forceinline__ void update_full_tile(const Row& row, const Buffers& at) {
  // vectors of every buffer that a thread has in flight: as many as its registers hold
  constexpr int kInFlight = uses_max_exp_avg_sq<RULE> ? 1 : kVectorsPerThread;
#pragma unroll
  for (int first = 0; first < kVectorsPerThread; first += kInFlight) {
    float4 param[kInFlight], grad[kInFlight], exp_avg[kInFlight], exp_avg_sq[kInFlight], max_exp_avg_sq[kInFlight];
    // All loads before the first use: what hides the latency of memory here is bytes in flight.
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int i = ((first + k) * kThreads + static_cast<int>(threadIdx.x)) * kVector;
      param[k] = load4(at.param + i);
      grad[k] = load4(at.grad + i);
      if constexpr (uses_exp_avg<RULE>) exp_avg[k] = load4(at.exp_avg + i);
      if constexpr (uses_exp_avg_sq<RULE>) exp_avg_sq[k] = load4(at.exp_avg_sq + i);
      if constexpr (uses_max_exp_avg_sq<RULE>) max_exp_avg_sq[k] = load4(at.max_exp_avg_sq + i);
    }
    if (first == 0) __syncthreads();  // now the row is there
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int i = ((first + k) * kThreads + static_cast<int>(threadIdx.x)) * kVector;
      float4 &p = param[k], &g = grad[k], &m = exp_avg[k], &v = exp_avg_sq[k], &v_max = max_exp_avg_sq[k];
      update_element<RULE>(row, p.x, g.x, m.x, v.x, v_max.x);
      update_element<RULE>(row, p.y, g.y, m.y, v.y, v_max.y);
      update_element<RULE>(row, p.z, g.z, m.z, v.z, v_max.z);
      update_element<RULE>(row, p.w, g.w, m.w, v.w, v_max.w);
      store4(at.param + i, p);
      if constexpr (uses_exp_avg<RULE>) store4(at.exp_avg + i, m);
      if constexpr (uses_exp_avg_sq<RULE>) store4(at.exp_avg_sq + i, v);
      if constexpr (uses_max_exp_avg_sq<RULE>) store4(at.max_exp_avg_sq + i, v_max);
    }
  }
}

// The ragged end of a parameter, and every tile of a record that is not aligned.
template <int RULE>
__device__ __forceinline__ void update_partial_tile(const Row& row, const Buffers& at, int count) {
  __syncthreads();  // now the row is there
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    float p = load1(at.param + i), m = 0, v = 0, v_max = 0;
    const float g = load1(at.grad + i);
    if constexpr (uses_exp_avg<RULE>) m = load1(at.exp_avg + i);
    if constexpr (uses_exp_avg_sq<RULE>) v = load1(at.exp_avg_sq + i);
    if constexpr (uses_max_exp_avg_sq<RULE>) v_max = load1(at.max_exp_avg_sq + i);
    update_element<RULE>(row, p, g, m, v, v_max);
    store1(at.param + i, p);
    if constexpr (uses_exp_avg<RULE>) store1(at.exp_avg + i, m);
    if constexpr (uses_exp_avg_sq<RULE>) store1(at.exp_avg_sq + i, v);
    if constexpr (uses_max_exp_avg_sq<RULE>) store1(at.max_exp_avg_sq + i, v_max);
  }
}

template <int RULE>
__device__ __forceinline__ void update_tile(const Record& record, const Row& row, int64_t offset) {
  // An absent buffer has address 0: never dereferenced, and never offset (null plus a number is undefined).
  const Buffers at = {
      reinterpret_cast<float*>(record.param) + offset,
      reinterpret_cast<const float*>(record.grad) + offset,
      uses_exp_avg<RULE> ? reinterpret_cast<float*>(record.exp_avg) + offset : nullptr,
      uses_exp_avg_sq<RULE> ? reinterpret_cast<float*>(record.exp_avg_sq) + offset : nullptr,
      uses_max_exp_avg_sq<RULE> ? reinterpret_cast<float*>(record.max_exp_avg_sq) + offset : nullptr,
  };
  const int64_t left = record.numel - offset;
  if (left >= kTileElements && is_aligned(record)) {
    update_full_tile<RULE>(row, at);
  } else {
    update_partial_tile<RULE>(row, at, static_cast<int>(left < kTileElements ? left : kTileElements));
  }
}

__device__ __forceinline__ double rate(const GroupScalars& group) {
  if (!group.lr_address) return group.lr;
  // an access that says that it is to global memory, which an address out of a table does not
  return group.lr_is_double ? __ldcg(reinterpret_cast<const double*>(group.lr_address))
                            : __ldcg(reinterpret_cast<const float*>(group.lr_address));
}

// Counts a block of a parameter in; the last one takes the step. Every thread of the grid that needs the old count is
// in a block that has read it by then.
__device__ __forceinline__ void arrive(const StepArgs& args, int64_t index, const Record& record, float count) {
  const int tiles = static_cast<int>((record.numel + kTileElements - 1) / kTileElements);
  __threadfence();
  if (atomicAdd(&args.arrived[index], 1) < tiles - 1) return;
  __threadfence();
  args.arrived[index] = 0;
  args.steps[index] = count + 1.0f;
  args.ready[index] = 1;
}

// The scalars of a parameter's step, for the block to share: one thread's work, while the others load.
__device__ __forceinline__ void prepare_row(const StepArgs& args, int64_t tile, int64_t index, const Record& record,
                                            Row& row) {
  row = args.rows[record.row];
  if (args.groups) {
    const GroupScalars& group = args.groups[record.row];
    const float count = args.steps[index];
    if (!args.ready[index]) row.one_minus_dampening = 1.0f;
    complete_row(row, group, rate(group), bias_corrections(group.beta1, group.beta2, static_cast<int64_t>(count) + 1));
    arrive(args, index, record, count);
  }
  row.grad_sign *= gradient_factor(args, tile);  // one sign for all elements anyway: clipping costs them nothing
}

// RULE is one rule for the whole launch, or kMixedRules: then each block follows its own row.
template <int RULE>
__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor) step_kernel(StepArgs args) {
  if (args.found_inf && *args.found_inf != 0.0f) return;
  const int64_t t = args.first_tile + blockIdx.x;
  const Tile tile = args.tiles[t];
  const Record record = args.records[tile.record];
  if (!record.grad) return;
  __shared__ Row row;
  if (threadIdx.x == 0) prepare_row(args, t, tile.record, record, row);
  if constexpr (RULE != kMixedRules) {
    update_tile<RULE>(record, row, tile.offset);
  } else {
    switch (args.rows[record.row].rule) {
#define SF_CASE(rule)                              \
  case (rule):                                     \
    update_tile<(rule)>(record, row, tile.offset); \
    break;
      SF_FOR_EACH_RULE(SF_CASE)
#undef SF_CASE
    }
  }
}

const char* launch_step(const StepArgs& args, int device, int64_t stream) {
  if (const cudaError_t error = cudaSetDevice(device)) return cudaGetErrorString(error);
  const auto grid = static_cast<unsigned>(args.num_tiles);
  switch (args.rule) {
#define SF_CASE(rule)                                               \
  case (rule):                                                      \
    SF_LAUNCH((step_kernel<(rule)>), grid, kThreads, stream, args); \
    break;
    SF_FOR_EACH_RULE(SF_CASE)
#undef SF_CASE
    default:
      SF_LAUNCH((step_kernel<kMixedRules>), grid, kThreads, stream, args);
  }
  return launch_error();
}

int runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

int driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}

}  // namespace sf
