// The work of a block around the update of its tile: it completes its row, advances step counts that live on the
// device, and reports to the projection that follows.
#pragma once

#include "clipping.h"
#include "cuda/access.cuh"
#include "cuda/exact_squares.cuh"
#include "format.h"
#include "launch_args.h"
#include "projection.h"
#include "random_bits.h"
#include "row.h"
#include "tables.h"
#include "turn.h"

namespace sf {

// Options of a launch besides the update. Of the float32 kernels only the one that mixes rules is instantiated with
// these options, so that the others pay nothing for them.
struct StepOptions {
  Turn turn;
  float* grad_sum;  // the tile's part of the sum; null: this parameter's gradients are not summed up
  float unscale;
  bool zero_grads;
};

// The state that the threads of a block share in the kernel for low precision.
struct BlockState {
  Record record;
  Row row;
  StepOptions options;
  Format format;
  TileRandom random;
  Tile tile;
  int rows, row_length, warps_per_row, padded, row_padding;  // of the tile, see low_precision.cu
  int64_t first_code;                                        // block of codes with which the tile begins
  int64_t index;                                             // of the tile, in the table
  int32_t scheme;  // the scheme whose path this tile may take (cuda/schemes.cuh), or kNoScheme
  bool skips;      // shared, because another register would spill
  bool moves;      // likewise
};

// The random bits of element i + j. A full tile begins where its stream does, and `i` is even there: the compiler sees
// that two neighbours share a word, and mixes it once.
__device__ __forceinline__ uint32_t random_of(const BlockState& block, int64_t i, int j, bool is_full) {
  const auto index = static_cast<uint32_t>(i - block.tile.offset);
  if (!is_full) return block.random.bits(index + j);
  const uint32_t word = random_word(block.random.streams[0], index / 2 + j / 2);
  return j % 2 ? word >> 16 : word & 0xFFFF;
}

constexpr int kLowPrecisionThreads = 256;
constexpr int kLowPrecisionBlocksPerMultiprocessor = 3;
// A warp updates this many consecutive elements of a full tile.
constexpr int kElementsPerWarp = kTileElements / (kLowPrecisionThreads / kWarp);
static_assert(kLowPrecisionThreads == kLanes);  // report_tile() needs one thread per lane

// A pointer into a buffer, null if it is absent: an offset from null would be undefined.
__device__ __forceinline__ float* element(int64_t address, int64_t offset) {
  return address ? reinterpret_cast<float*>(address) + offset : nullptr;
}

__device__ __forceinline__ double learning_rate(const GroupScalars& group) {
  if (!group.lr_address) return group.lr;
  // __ldcg reads global memory, where a plain load would use generic addressing
  return group.lr_is_double ? __ldcg(reinterpret_cast<const double*>(group.lr_address))
                            : __ldcg(reinterpret_cast<const float*>(group.lr_address));
}

// Counts the blocks of a parameter that have read its step count; the last one to arrive advances it. No block needs
// the old count after that.
template <bool OPTIONS>
__device__ __forceinline__ void arrive(const StepArgs& args, int64_t index, const Record& record, const Turn& turn) {
  const float count = args.steps[index], waited = OPTIONS ? args.waited[index] : 0.0f;
  __threadfence();
  if (atomicAdd(&args.arrived[index], 1) < static_cast<int>(record.tiles) - 1) return;
  __threadfence();
  args.arrived[index] = 0;
  if constexpr (OPTIONS) {
    if (args.takes_turns) args.waited[index] = turn.waited_after(waited, record.grad != 0);
    if (!turn.moves(record.grad != 0)) return;
  }
  args.steps[index] = count + 1.0f;
  args.ready[index] = 1;
}

// Computes the scalars of a parameter's step, for the block to share. One thread does this while the others load.
template <bool OPTIONS>
__device__ __forceinline__ void prepare_row(const StepArgs& args, int64_t tile, int64_t index, const Record& record,
                                            const Turn& turn, Row& row) {
  row = args.rows[record.row];
  if (args.groups) {
    const GroupScalars& group = args.groups[record.row];
    const auto next = static_cast<int64_t>(args.steps[index]) + 1;
    if (!args.ready[index]) row.one_minus_dampening = 1.0f;
    complete_row(row, group, learning_rate(group), bias_corrections(group.beta1, group.beta2, next), next);
    arrive<OPTIONS>(args, index, record, turn);
  }
  // every element is multiplied by the sign anyway, so clipping and unscaling are free
  row.grad_sign *= clipping(args, tile);
  if (!turn.sums()) row.grad_sign *= unscaling(args.grad_scale);
}

// Writes what the projection onto a joint set needs to know about a tile. The last block of a ball to finish computes
// the ball's factor.
__device__ __forceinline__ void report_tile(const StepArgs& args, bool moved) {
  __shared__ SquaresScratch scratch;
  __shared__ ExactSum total;
  __shared__ bool is_last;
  const int thread = thread_now();
  // read again, because the update needs all registers
  const int64_t t = args.first_tile + blockIdx.x;
  const Tile tile = args.tiles[t];
  const Record& record = args.records[tile.record];
  const int64_t index = record.set - 1;
  if (index < 0) return;
  const JointSet& set = args.sets[index];
  if (thread == 0 && tile.offset == 0) args.moved[tile.record] = moved;  // the same for all tiles of a record
  if (set.kind != kBall) return;
  __syncthreads();  // orders the block's stores before its loads
  const float* param = element(record.param, tile.offset);
  const auto visit = [&](const auto& take) {
#pragma unroll 1
    for (int i = thread; i < tile.count; i += kLanes) take(load1(param + i));
  };
  ExactSum* const sums = args.set_sums + index * kSumCopies;
  add_squares(thread, visit, scratch, sums[t % kSumCopies]);
  __syncthreads();
  if (thread == 0) {
    __threadfence();  // orders `moved` and what the block has added before the count
    is_last = atomicAdd(&args.set_tiles_done[index], 1) == static_cast<int>(set.num_tiles) - 1;
  }
  __syncthreads();
  if (!is_last) return;
  // Orders the count before the loads of what other blocks wrote. Thread 0 counted, but every thread that loads needs
  // the fence, and one of sequential consistency: the order of those is what reaches from the fences before the count,
  // through it and a barrier, to other threads. A fence of acquire and release does so only in the thread that counted.
  __threadfence();
  const int64_t end = set.first_tile + set.num_tiles;
  bool has_moved = false;
  for (int64_t i = set.first_tile + thread; i < end; i += kLanes) {
    has_moved |= __ldcg(args.moved + args.tiles[i].record) != 0;
  }
  has_moved = __any_sync(kAllLanes, has_moved);
  if (thread % kWarp == 0) scratch.most[thread / kWarp] = has_moved;
  collect_copies(thread, sums, 1, total);
  __syncthreads();
  if (thread) return;
  for (int warp = 1; warp < kWarps; ++warp) has_moved |= scratch.most[warp] != 0;
  const double rounded = conclude_sum(total, args.set_digits + index * kHostWords);
  args.set_factors[index] = has_moved ? ball_factor(set, rounded) : 1.0;
  args.set_tiles_done[index] = 0;
}

}  // namespace sf
