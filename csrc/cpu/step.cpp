// The CPU kernel: one pass over each tile, by threads that share no tile. It is compiled once per instruction set with
// -DSF_ISA=avx512 | avx2 | baseline (cpu/dispatch.h).
#include "cpu/step.h"

#include <cstring>

#include "clipping.h"
#include "cpu/chunk.h"
#include "cpu/dispatch.h"
#include "cpu/eight_bit.h"
#include "cpu/elements.h"
#include "cpu/exact_squares.h"
#include "cpu/low_precision.h"
#include "turn.h"

namespace sf {
namespace {

// Updates a tile of float32 with float32 state in place.
void update_tile(const Record& record, const Row& row, const float* grad, int64_t offset, int64_t count) {
  const Elements of = {pointer<float>(record.param, offset),          grad,
                       pointer<float>(record.exp_avg, offset),        pointer<float>(record.exp_avg_sq, offset),
                       pointer<float>(record.max_exp_avg_sq, offset), pointer<float>(record.ema, offset)};
  update_by_rule(row, of, count);
}

// Updates a tile by the path of eight_bit.h. The chunks that this cannot update, and the ragged end, take the general
// path.
void update_eight_bit_tile(const Record& record, const Row& given, int64_t offset, int64_t count) {
  const LowPrecisionTile tile = low_precision_tile(record, given, offset);
  const auto update_range = [&](int64_t begin, int64_t end) {
    float grad[kChunk];
    read_floats(record.grad_dtype, record.grad, offset + begin, end - begin, grad);
    update_chunks(tile, grad, begin, end);
  };
  const int64_t whole = count / kChunk * kChunk;
  const int64_t bytes = offset * bytes_of(tile.format.param);
  const EightBitTile chunks = {{pointer<char>(record.param, bytes), pointer<const char>(record.grad, bytes),
                                pointer<int8_t>(record.master, offset)},
                               pointer<uint8_t>(record.exp_avg, offset),
                               pointer<uint8_t>(record.exp_avg_sq, offset),
                               pointer<uint8_t>(record.exp_avg_scale, offset / kBlock),
                               pointer<uint8_t>(record.exp_avg_sq_scale, offset / kBlock),
                               tile.stream,
                               whole};
  update_eight_bit(chunks, tile.format, tile.row, update_range);
  if (whole < count) update_range(whole, count);
}

// Writes the mean of all gradients since the group last moved to `mean`; `grad` may be null.
void take_mean(const Record& record, const Row& row, float unscale, const float* grad, int64_t offset, int64_t count,
               float* __restrict mean) {
  const float* grad_sum = pointer<const float>(record.grad_sum, offset);
  for (int64_t i = 0; i < count; ++i) mean[i] = mean_gradient(row, grad_sum[i], grad ? unscale * grad[i] : 0.0f);
}

// Writes what the projection onto a joint set needs to know about a tile.
void report_tile(const StepArgs& args, const Tile& tile, const Record& record, int64_t count, bool moved) {
  // other threads write the same value for other tiles of the record
  __atomic_store_n(args.moved + tile.record, moved, __ATOMIC_RELAXED);
  if (args.sets[record.set - 1].kind == kBall) {
    ExactSum sum{};
    add_squares(pointer<const float>(record.param, tile.offset), count, sum);
    add_atomically(sum, args.set_sums[(record.set - 1) * kSumCopies]);
  }
}

// Returns a gradient as float32: a pointer to it, or to `converted`; null where there is none.
const float* gradient_of(const Record& record, int64_t offset, int64_t count, float* converted) {
  if (!record.grad) return nullptr;
  if (record.grad_dtype == kFloat32) return pointer<const float>(record.grad, offset);
  read_floats(record.grad_dtype, record.grad, offset, count, converted);
  return converted;
}

void update_tiles(const StepArgs& args, int64_t first, int64_t last) {
  const bool moves = !args.found_inf || *args.found_inf == 0.0f;
  const float unscale = unscaling(args.grad_scale);
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = args.tiles[t];
    const Record& record = args.records[tile.record];
    const int64_t left = record.numel - tile.offset;
    const int64_t count = left < kTileElements ? left : kTileElements;
    float converted[kTileElements], mean[kTileElements];
    const Turn turn = turn_of(args, tile.record, record);
    // the path of eight_bit.h reads gradients as they are stored: then `gradient` only tells whether there is one
    const bool reads_float32 = turn.sums() || !takes_eight_bit_path(record, args.rows[record.row].rule);
    const float* const gradient =
        reads_float32 ? gradient_of(record, tile.offset, count, converted) : pointer<const float>(record.grad, 0);
    float* const grad_sum = pointer<float>(record.grad_sum, tile.offset);
    if (moves && turn.moves(gradient)) {
      Row row = args.rows[record.row];
      row.grad_sign *= clipping(args, t);
      const float* grad = gradient;
      if (turn.sums()) {
        take_mean(record, row, unscale, gradient, tile.offset, count, mean);
        grad = mean;
      } else {
        row.grad_sign *= unscale;
      }
      if (reads_float32) {
        (record.format ? update_low_precision_tile : update_tile)(record, row, grad, tile.offset, count);
      } else {
        update_eight_bit_tile(record, row, tile.offset, count);
      }
      if (turn.sums()) std::memset(grad_sum, 0, count * sizeof(float));
    } else if (moves && turn.adds(gradient)) {
      for (int64_t i = 0; i < count; ++i) grad_sum[i] += unscale * gradient[i];
    }
    if (args.zero_grads && gradient) {
      const int64_t bytes = bytes_of(record.grad_dtype);
      std::memset(pointer<char>(record.grad, tile.offset * bytes), 0, count * bytes);
    }
    if (args.sets && record.set) report_tile(args, tile, record, count, moves && turn.moves(gradient));
  }
}

// Adds the squares of the gradients of a tile, as they move parameters now.
void add_tile(const StatisticsArgs& args, int64_t t, ExactSum& sum) {
  const Tile tile = args.tiles[t];
  const Record& record = args.records[tile.record];
  const Turn turn = turn_of(args, tile.record, record);
  if (!turn.moves(record.grad)) return;
  const float unscale = unscaling(args.grad_scale);
  const int64_t left = record.numel - tile.offset;
  const int64_t count = left < kTileElements ? left : kTileElements;
  float converted[kTileElements], effective[kTileElements];
  const float* const gradient = gradient_of(record, tile.offset, count, converted);
  const float* grad = gradient;
  if (turn.sums()) {
    take_mean(record, args.rows[record.row], unscale, gradient, tile.offset, count, effective);
    grad = effective;
  } else if (args.grad_scale) {
    for (int64_t i = 0; i < count; ++i) effective[i] = unscale * gradient[i];
    grad = effective;
  }
  add_squares(grad, count, sum);
}

void sum_tiles(const StatisticsArgs& args, int64_t first, int64_t last) {
  ExactSum sums[2] = {};
  for (int64_t t = first; t < last; ++t) add_tile(args, t, sums[player_of(args, t)]);
  for (int player = 0; player < 2; ++player) add_atomically(sums[player], args.sums[player]);
}

}  // namespace

extern const Kernel SF_ISA_NAME(kernel_) = {SF_ISA_STRING, update_tiles, sum_tiles};

}  // namespace sf
