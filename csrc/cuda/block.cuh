// What a block does around the update of its tile: its row, its turn, the counts on the device, and what it leaves for
// a projection.
#pragma once

#include "cuda/access.cuh"
#include "cuda/block_sum.cuh"
#include "format.h"
#include "projection.h"
#include "random_bits.h"
#include "row.h"
#include "summation.h"
#include "tables.h"
#include "turn.h"

namespace sf {

// What a launch may do beside the update. Of the kernels of float32 only the one that mixes rules is instantiated with
// it, so that the others carry none of it.
struct StepOptions {
  Turn turn;
  float* grad_sum;  // of the tile; null: this parameter's gradients are not summed up
  float unscale;
  bool zero_grads;
};

// What the threads of a block share where records are not all float32.
struct BlockState {
  Record record;
  Row row;
  StepOptions options;
  Format format;
  Stream stream;
  Tile tile;
  int64_t index;   // of the tile, in the table
  int32_t scheme;  // that has a path of its own, or kNoScheme
  // held here, or a register would be short
  bool skips;
  bool moves;  // known to the thread that leads
};

// The random bits of element i + j. Where `i` is even, a word is mixed once for two neighbours: the compiler sees that
// it is the same.
__device__ __forceinline__ uint32_t random_of(const BlockState& at, int64_t i, int j, bool is_even) {
  const auto index = static_cast<uint32_t>(i - at.tile.offset);
  if (!is_even) return random_bits(at.stream, index + j);
  const uint32_t word = random_word(at.stream, index / 2 + j / 2);
  return j % 2 ? word >> 16 : word & 0xFFFF;
}

constexpr int kLowPrecisionThreads = 256;
constexpr int kLowPrecisionBlocksPerMultiprocessor = 3;
constexpr int kElementsOfWarp = kTileElements / (kLowPrecisionThreads / kWarp);  // of a full tile, neighbours
static_assert(kLowPrecisionThreads == kLanes);                                   // of whom report_tile() takes one each

// An absent buffer has address 0: never dereferenced, and never offset (null plus a number is undefined).
__device__ __forceinline__ float* element(int64_t address, int64_t offset) {
  return address ? reinterpret_cast<float*>(address) + offset : nullptr;
}

__device__ __forceinline__ double rate(const GroupScalars& group) {
  if (!group.lr_address) return group.lr;
  // an access that says that it is to global memory, which an address out of a table does not
  return group.lr_is_double ? __ldcg(reinterpret_cast<const double*>(group.lr_address))
                            : __ldcg(reinterpret_cast<const float*>(group.lr_address));
}

// Counts a block of a parameter in; the last one takes the step. Every thread of the grid that needs the old counts is
// in a block that has read them by then.
template <bool OPTIONS>
__device__ __forceinline__ void arrive(const StepArgs& args, int64_t index, const Record& record, const Turn& turn) {
  const float count = args.steps[index], waited = OPTIONS ? args.waited[index] : 0.0f;
  const int tiles = static_cast<int>((record.numel + kTileElements - 1) / kTileElements);
  __threadfence();
  if (atomicAdd(&args.arrived[index], 1) < tiles - 1) return;
  __threadfence();
  args.arrived[index] = 0;
  if constexpr (OPTIONS) {
    if (args.takes_turns) args.waited[index] = turn.waited_after(waited, record.grad != 0);
    if (!turn.moves(record.grad != 0)) return;
  }
  args.steps[index] = count + 1.0f;
  args.ready[index] = 1;
}

// The scalars of a parameter's step, for the block to share: one thread's work, while the others load.
template <bool OPTIONS>
__device__ __forceinline__ void prepare_row(const StepArgs& args, int64_t tile, int64_t index, const Record& record,
                                            const Turn& turn, Row& row) {
  row = args.rows[record.row];
  if (args.groups) {
    const GroupScalars& group = args.groups[record.row];
    const auto next = static_cast<int64_t>(args.steps[index]) + 1;
    if (!args.ready[index]) row.one_minus_dampening = 1.0f;
    complete_row(row, group, rate(group), bias_corrections(group.beta1, group.beta2, next), next);
    arrive<OPTIONS>(args, index, record, turn);
  }
  // one sign for all elements anyway: clipping and unscaling cost them nothing
  row.grad_sign *= clipping(args, tile);
  if (!turn.sums()) row.grad_sign *= unscaling(args.grad_scale);
}

// What projecting onto a joint set needs to know of a tile. The block that is done last with a ball concludes its
// factor.
__device__ __forceinline__ void report_tile(const StepArgs& args, int64_t t, const Tile& tile, const Record& record,
                                            bool moved) {
  __shared__ double shared[kLanes];
  __shared__ bool is_last;
  const bool leads = threadIdx.x == 0;
  const JointSet& set = args.sets[record.set - 1];
  if (leads) args.moved[tile.record] = moved;  // all tiles of a record say the same
  if (set.kind != kBall) return;
  __syncthreads();  // the block's stores before its loads
  const float* param = element(record.param, tile.offset);
  const double mine = lane_of_tile(record.numel - tile.offset, [&](int i) { return load1(param + i); });
  const double sum = sum_lanes(mine, shared);
  if (leads) {
    args.set_sums[t] = sum;
    __threadfence();  // the sum, and whether it moved, before the count
    is_last = atomicAdd(&args.set_tiles_done[record.set - 1], 1) == static_cast<int>(set.num_tiles) - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();  // the count before what other blocks wrote
  const int64_t end = set.first_tile + set.num_tiles;
  const double total = sum_lanes(lane_of_sums(args.set_sums, set.first_tile, end), shared);
  double tiles_moved = 0;
  for (int64_t i = set.first_tile + static_cast<int>(threadIdx.x); i < end; i += kLanes) {
    tiles_moved += __ldcg(args.moved + args.tiles[i].record);
  }
  tiles_moved = sum_lanes(tiles_moved, shared);
  if (!leads) return;
  args.set_factors[record.set - 1] = tiles_moved != 0 ? ball_factor(set, total) : 1.0;
  args.set_tiles_done[record.set - 1] = 0;
}

}  // namespace sf
