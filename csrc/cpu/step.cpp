// The CPU kernel: one pass over each tile, by threads that share no tile. It is compiled once per instruction set with
// -DSF_ISA=avx512 | avx2 | baseline (cpu/dispatch.h).
#include "cpu/step.h"

#include <cstring>

#include "clipping.h"
#include "cpu/chunk.h"
#include "cpu/dispatch.h"
#include "cpu/elements.h"
#include "cpu/exact_squares.h"
#include "cpu/low_precision.h"
#include "cpu/vector_path.h"
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

// Elements of a tile from `begin` on, `count` of them whole chunks, which vectors update: their blocks of codes are
// full, and pairs of them share a word of one stream of random numbers.
VectorTile vector_tile(const LowPrecisionTile& tile, const void* grad, int32_t grad_dtype, int64_t begin,
                       int64_t count) {
  const auto& [record, format, row, random, offset] = tile;
  const int64_t first = offset + begin, block = block_of(record, first), moment = first * bytes_of_moment(format.state);
  const int64_t index = random.first + begin;
  return {{pointer<char>(record.param, first * bytes_of(format.param)),
           pointer<char>(record.master, first * bytes_of_master(format.master)),
           static_cast<const char*>(grad) + begin * bytes_of(grad_dtype), grad_dtype},
          {pointer<char>(record.exp_avg, moment), pointer<char>(record.exp_avg_sq, moment),
           pointer<uint8_t>(record.exp_avg_scale, block), pointer<uint8_t>(record.exp_avg_sq_scale, block)},
          random.streams[index >= kTileElements],
          static_cast<uint32_t>(index % kTileElements),
          count};
}

// The elements from `begin` to `end` of a tile that vectors may update: whole chunks up to where the stream ends.
int64_t regular_count(const LowPrecisionTile& tile, int64_t begin, int64_t end) {
  const int64_t index = tile.random.first + begin, until = kTileElements - index % kTileElements;
  if (index % 2) return 0;
  return (end - begin < until ? end - begin : until) / kChunk * kChunk;
}

// Updates a tile that is not float32 by the path of vector_path.h. The chunks that this cannot update, and ragged ends,
// take the general path. `grad` points to the gradient of the tile's first element, of a Dtype.
void update_tile_by_vectors(const Record& record, const Row& given, const void* grad, int32_t grad_dtype,
                            const Tile& of, PathCounts& counts) {
  const LowPrecisionTile tile = low_precision_tile(record, given, of);
  const auto update_range = [&](int64_t begin, int64_t end) {
    float converted[kTileElements];
    read_floats(grad_dtype, reinterpret_cast<int64_t>(grad), begin, end - begin, converted);
    update_chunks(tile, converted, begin, end);
    counts.chunks += end - begin;
  };
  const int64_t row = record.block_row && record.block_row < of.count ? record.block_row : of.count;
  if (row < kChunk) return update_range(0, of.count);
  for (int64_t begin = 0; begin < of.count; begin += row) {
    for (int64_t at = begin; at < begin + row;) {
      const int64_t count = regular_count(tile, at, begin + row);
      const int64_t left = begin + row - at < kChunk ? begin + row - at : kChunk;
      if (count) {
        counts.vectors += count;
        update_by_vectors(vector_tile(tile, grad, grad_dtype, at, count), tile.format, tile.row,
                          [&](int64_t first, int64_t last) {
                            counts.vectors -= last - first;
                            update_range(at + first, at + last);
                          });
      } else {
        update_range(at, at + left);
      }
      at += count ? count : left;
    }
  }
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

PathCounts update_tiles(const StepArgs& args, int64_t first, int64_t last) {
  PathCounts counts{};
  const bool moves = !args.found_inf || *args.found_inf == 0.0f;
  const float unscale = unscaling(args.grad_scale);
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = args.tiles[t];
    const Record& record = args.records[tile.record];
    const int64_t count = tile.count;
    float converted[kTileElements], mean[kTileElements];
    const Turn turn = turn_of(args, tile.record, record);
    const bool has_gradient = record.grad;
    const bool by_vectors = record.format && has_vector_path(args.rows[record.row].rule);
    // vectors read gradients as they are stored
    const bool reads_float32 = turn.sums() || !by_vectors;
    const float* const gradient = reads_float32 ? gradient_of(record, tile.offset, count, converted) : nullptr;
    float* const grad_sum = pointer<float>(record.grad_sum, tile.offset);
    if (moves && turn.moves(has_gradient)) {
      Row row = args.rows[record.row];
      row.grad_sign *= clipping(args, t);
      const float* grad = gradient;
      if (turn.sums()) {
        take_mean(record, row, unscale, gradient, tile.offset, count, mean);
        grad = mean;
      } else {
        row.grad_sign *= unscale;
      }
      if (by_vectors) {
        const void* const stored = pointer<char>(record.grad, tile.offset * bytes_of(record.grad_dtype));
        const int32_t dtype = grad ? kFloat32 : static_cast<int32_t>(record.grad_dtype);
        update_tile_by_vectors(record, row, grad ? grad : stored, dtype, tile, counts);
      } else if (record.format) {
        update_low_precision_tile(record, row, grad, tile);
        counts.chunks += count;
      } else {
        update_tile(record, row, grad, tile.offset, count);
        counts.in_place += count;
      }
      if (turn.sums()) std::memset(grad_sum, 0, count * sizeof(float));
    } else if (moves && turn.adds(has_gradient)) {
      for (int64_t i = 0; i < count; ++i) grad_sum[i] += unscale * gradient[i];
    }
    if (args.zero_grads && has_gradient) {
      const int64_t bytes = bytes_of(record.grad_dtype);
      std::memset(pointer<char>(record.grad, tile.offset * bytes), 0, count * bytes);
    }
    if (args.sets && record.set) report_tile(args, tile, record, count, moves && turn.moves(has_gradient));
  }
  return counts;
}

// Adds the squares of the gradients of a tile, as they move parameters now.
void add_tile(const StatisticsArgs& args, int64_t t, ExactSum& sum) {
  const Tile tile = args.tiles[t];
  const Record& record = args.records[tile.record];
  const Turn turn = turn_of(args, tile.record, record);
  const bool moves = turn.moves(record.grad);
  if (!is_read(args, record.grad, moves)) return;
  const float unscale = unscaling(args, moves);
  const int64_t count = tile.count;
  float converted[kTileElements], effective[kTileElements];
  const float* const gradient = gradient_of(record, tile.offset, count, converted);
  const float* grad = gradient;
  if (moves && turn.sums()) {
    take_mean(record, args.rows[record.row], unscale, gradient, tile.offset, count, effective);
    grad = effective;
  } else if (unscale != 1.0f) {
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
