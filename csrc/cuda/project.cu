// The launch that projects onto joint sets: block b takes piece first_piece + b.
#include "cuda/launch.cuh"

#include "cuda/access.cuh"
#include "cuda/block_sum.cuh"
#include "cuda/step.h"
#include "projection.h"
#include "update_rule.h"

namespace sf {

__device__ __forceinline__ void average(const Record& record, const Row& row, int64_t index, float param) {
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
  const int64_t left = record.numel - piece.offset, last = piece.offset + (left < kTileElements ? left : kTileElements);
  for (int64_t i = piece.offset + static_cast<int>(threadIdx.x); i < last; i += kLanes) {
    float* at = reinterpret_cast<float*>(record.param) + i;
    const float found = on_ball(load1(at), factor);
    store1(at, found);
    if (averages) average(record, args.rows[record.row], i, found);
  }
}

// What all threads of a block need of a row.
struct Shared {
  double lanes[kLanes];
  double sum;
};

// Thread 0's value, given to all. Lanes may be used again afterwards.
__device__ __forceinline__ double sum_for_all(double mine, Shared& shared) {
  const double sum = sum_lanes(mine, shared.lanes);
  if (threadIdx.x == 0) shared.sum = sum;
  __syncthreads();
  const double found = shared.sum;
  __syncthreads();
  return found;
}

__device__ __forceinline__ double largest_for_all(double mine, Shared& shared) {
  shared.lanes[threadIdx.x] = mine;
  __syncthreads();
  for (int half = kLanes / 2; half; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half && shared.lanes[threadIdx.x + half] > shared.lanes[threadIdx.x]) {
      shared.lanes[threadIdx.x] = shared.lanes[threadIdx.x + half];
    }
    __syncthreads();
  }
  const double found = shared.lanes[0];
  __syncthreads();
  return found;
}

// Every thread of the block calls it.
__device__ __forceinline__ void project_row(const JointSet& set, const Record& record, int64_t start, Shared& shared) {
  float* row = reinterpret_cast<float*>(record.param) + start;
  const int64_t length = record.row_length;
  const int lane = static_cast<int>(threadIdx.x);
  const auto at = [&](int64_t j) { return static_cast<double>(load1(row + j * record.row_stride)); };
  double below = -kNoLimit, above_all = -kNoLimit, mine = 0;
  for (int64_t j = lane; j < length; j += kLanes) {
    const double x = at(j);
    below = -x > below ? -x : below;
    above_all = x > above_all ? x : above_all;
    mine += x;
  }
  const double smallest = -largest_for_all(below, shared), largest = largest_for_all(above_all, shared);
  if (row_stays(set, smallest, sum_for_all(mine, shared))) return;
  Threshold threshold(set.size);
  while (true) {
    double count = 0, sum = 0;
    for (int64_t j = lane; j < length; j += kLanes) {
      const double relative = at(j) - largest;
      const bool kept = relative > threshold.value;
      count += kept;
      sum += kept ? relative : 0.0;
    }
    count = sum_for_all(count, shared);
    if (!threshold.narrow(set.size, count, sum_for_all(sum, shared))) break;
  }
  mine = 0;
  for (int64_t j = lane; j < length; j += kLanes) mine += above(at(j) - largest, threshold.value);
  const double scale = set.size / sum_for_all(mine, shared);
  for (int64_t j = lane; j < length; j += kLanes) {
    store1(row + j * record.row_stride, toward_zero(above(at(j) - largest, threshold.value) * scale));
  }
}

__device__ __forceinline__ void project_rows(const ProjectArgs& args, const Tile& piece, const Record& record,
                                             Shared& shared) {
  if (!args.moved[piece.record]) return;
  const int64_t end = piece.offset + rows_per_piece(record.row_length);
  for (int64_t index = piece.offset; index < record.row_count && index < end; ++index) {
    const int64_t start = row_start(record, index);
    project_row(args.sets[record.set - 1], record, start, shared);
    for (int64_t j = static_cast<int>(threadIdx.x); j < record.row_length; j += kLanes) {
      const int64_t i = start + j * record.row_stride;
      if (record.ema) average(record, args.rows[record.row], i, load1(reinterpret_cast<float*>(record.param) + i));
    }
  }
}

__global__ void __launch_bounds__(kLanes) project_kernel(ProjectArgs args) {
  __shared__ Shared shared;
  if (args.found_inf && *args.found_inf != 0.0f) return;
  const Tile piece = args.pieces[args.first_piece + blockIdx.x];
  const Record record = args.records[piece.record];
  if (args.sets[record.set - 1].kind == kBall) {
    project_tile(args, piece, record);
  } else {
    project_rows(args, piece, record, shared);
  }
}

const char* launch_project(const ProjectArgs& args, int device, int64_t stream) {
  if (const cudaError_t error = cudaSetDevice(device)) return cudaGetErrorString(error);
  SF_LAUNCH(project_kernel, static_cast<unsigned>(args.num_pieces), kLanes, stream, args);
  return launch_error();
}

}  // namespace sf
