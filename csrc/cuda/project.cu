// The launch that projects onto joint sets: block b projects piece first_piece + b.
#include "cuda/launch.cuh"

#include "cuda/access.cuh"
#include "cuda/block_sum.cuh"
#include "cuda/step.h"
#include "projection.h"
#include "update_rule.h"

namespace sf {

__device__ __forceinline__ void update_average(const Record& record, const Row& row, int64_t index, float param) {
  if (!record.ema) return;
  float* at = reinterpret_cast<float*>(record.ema) + index;
  float ema = load1(at);
  ema_update(row, param, ema);
  store1(at, ema);
}

__device__ __forceinline__ void project_tile(const ProjectArgs& args, const Tile& piece, const Record& record) {
  const double factor = args.set_factors[record.set - 1];
  const bool averages = record.ema && args.moved[piece.record];
  if (factor == 1.0 && !averages) return;
  for (int64_t i = piece.offset + static_cast<int>(threadIdx.x); i < piece.offset + piece.count; i += kLanes) {
    float* at = reinterpret_cast<float*>(record.param) + i;
    const float projected = on_ball(load1(at), factor);
    store1(at, projected);
    if (averages) update_average(record, args.rows[record.row], i, projected);
  }
}

// Shared memory for the sums and maxima of a row.
struct Scratch {
  double lanes[kLanes];
  double sum;
};

// The sum over the block, returned to every thread. The lanes of the scratch memory are free again afterwards; before
// the sum is written again, every thread has passed the barriers of the next call.
__device__ __forceinline__ double block_sum(double mine, Scratch& scratch) {
  const double sum = sum_lanes(mine, scratch.lanes);
  if (threadIdx.x == 0) scratch.sum = sum;
  __syncthreads();
  return scratch.sum;
}

// Likewise the maximum; all of the scratch memory is free again.
__device__ __forceinline__ double block_max(double mine, Scratch& scratch) {
  scratch.lanes[threadIdx.x] = mine;
  __syncthreads();
  for (int half = kLanes / 2; half; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half && scratch.lanes[threadIdx.x + half] > scratch.lanes[threadIdx.x]) {
      scratch.lanes[threadIdx.x] = scratch.lanes[threadIdx.x + half];
    }
    __syncthreads();
  }
  const double largest = scratch.lanes[0];
  __syncthreads();
  return largest;
}

// Projects one row. Every thread of the block has to call it.
__device__ __forceinline__ void project_row(const JointSet& set, const Record& record, int64_t start,
                                            Scratch& scratch) {
  float* row = reinterpret_cast<float*>(record.param) + start;
  const int64_t length = record.row_length;
  const int lane = static_cast<int>(threadIdx.x);
  const auto at = [&](int64_t j) { return static_cast<double>(load1(row + j * record.row_stride)); };
  double max_negated = -kNoLimit, max_value = -kNoLimit, mine = 0;
  for (int64_t j = lane; j < length; j += kLanes) {
    const double x = at(j);
    max_negated = -x > max_negated ? -x : max_negated;
    max_value = x > max_value ? x : max_value;
    mine += x;
  }
  const double smallest = -block_max(max_negated, scratch), largest = block_max(max_value, scratch);
  if (row_stays(set, smallest, block_sum(mine, scratch))) return;
  Threshold threshold(set.size);
  while (true) {
    double count = 0, sum = 0;
    for (int64_t j = lane; j < length; j += kLanes) {
      const double relative = at(j) - largest;
      const bool is_above = relative > threshold.value;
      count += is_above;
      sum += is_above ? relative : 0.0;
    }
    count = block_sum(count, scratch);
    if (!threshold.raise(set.size, count, block_sum(sum, scratch))) break;
  }
  mine = 0;
  for (int64_t j = lane; j < length; j += kLanes) mine += above(at(j) - largest, threshold.value);
  const double scale = set.size / block_sum(mine, scratch);
  for (int64_t j = lane; j < length; j += kLanes) {
    store1(row + j * record.row_stride, toward_zero(above(at(j) - largest, threshold.value) * scale));
  }
}

__device__ __forceinline__ void project_rows(const ProjectArgs& args, const Tile& piece, const Record& record,
                                             Scratch& scratch) {
  if (!args.moved[piece.record]) return;
  for (int64_t index = piece.offset; index < piece.offset + piece.count; ++index) {
    const int64_t start = row_start(record, index);
    project_row(args.sets[record.set - 1], record, start, scratch);
    for (int64_t j = static_cast<int>(threadIdx.x); j < record.row_length; j += kLanes) {
      const int64_t i = start + j * record.row_stride;
      if (record.ema) {
        update_average(record, args.rows[record.row], i, load1(reinterpret_cast<float*>(record.param) + i));
      }
    }
  }
}

__global__ void __launch_bounds__(kLanes) project_kernel(ProjectArgs args) {
  __shared__ Scratch scratch;
  if (args.found_inf && *args.found_inf != 0.0f) return;
  const Tile piece = args.pieces[args.first_piece + blockIdx.x];
  const Record record = args.records[piece.record];
  if (args.sets[record.set - 1].kind == kBall) {
    project_tile(args, piece, record);
  } else {
    project_rows(args, piece, record, scratch);
  }
}

const char* launch_project(const ProjectArgs& args, int device, int64_t stream) {
  if (const cudaError_t error = cudaSetDevice(device)) return cudaGetErrorString(error);
  SF_LAUNCH(project_kernel, static_cast<unsigned>(args.num_pieces), kLanes, stream, args);
  return launch_error();
}

}  // namespace sf
