// One pass over each tile. Compiled once per instruction set with -DSF_ISA=avx512 | avx2 | baseline; the compiler
// vectorises the scalar rule, so no rule is written twice.
#include "cpu/step.h"

#include <cstring>

#include "cpu/eight_bit.h"
#include "cpu/elements.h"
#include "cpu/low_precision.h"
#include "summation.h"
#include "turn.h"

#define SF_CONCAT_(a, b) a##b
#define SF_CONCAT(a, b) SF_CONCAT_(a, b)
#define SF_STRING_(a) #a
#define SF_STRING(a) SF_STRING_(a)

namespace sf {
namespace {

// A tile of float32 with float32 state, updated where it lies.
void update_tile(const Record& record, const Row& row, const float* grad, int64_t offset, int64_t count) {
  const Elements of = {pointer<float>(record.param, offset),          grad,
                       pointer<float>(record.exp_avg, offset),        pointer<float>(record.exp_avg_sq, offset),
                       pointer<float>(record.max_exp_avg_sq, offset), pointer<float>(record.ema, offset)};
  update_by_rule(row, of, count);
}

// A tile stored in any other way.
struct LowPrecisionTile {
  const Record& record;
  Format format;
  Row row;
  Stream stream;
  int64_t offset;
};

LowPrecisionTile low_precision_tile(const Record& record, const Row& given, int64_t offset) {
  const Format format = format_of(record.format);
  Row row = given;
  row.low = rounded_inside(row.low, format.param, true);
  row.high = rounded_inside(row.high, format.param, false);
  return {record, format, row, tile_stream(record.key, row.step, offset / kTileElements), offset};
}

// Chunk by chunk decoded, updated and encoded: those from `begin` to `end` within the tile, `grad` being of the first.
void update_chunks(const LowPrecisionTile& tile, const float* grad, int64_t begin, int64_t end) {
  const auto& [record, format, row, stream, offset] = tile;
  const bool is_decoded = format.state != kState32;
  alignas(64) float weight[kChunk], decoded[3][kChunk];
  alignas(64) uint32_t random[kChunk];
  for (int64_t done = begin; done < end; done += kChunk) {
    const int64_t first = offset + done, left = end - done < kChunk ? end - done : kChunk;
    if (draws(format)) draw(stream, static_cast<uint32_t>(done), left, random);
    read_weights(record, format, first, left, weight);
    float* moments[3] = {};
    for_each_moment(record, row.rule, [&](auto code, const Moment& moment, int k) {
      moments[k] = is_decoded ? decoded[k] : pointer<float>(moment.address, first);
      if (is_decoded) read_moments<decltype(code)>(format.state, moment, first, left, decoded[k]);
    });
    update_by_rule(row,
                   {weight, grad + done - begin, moments[0], moments[1], moments[2], pointer<float>(record.ema, first)},
                   left);
    write_weights(record, format, first, left, weight, random);
    if (!is_decoded) continue;
    for_each_moment(record, row.rule, [&](auto code, const Moment& moment, int k) {
      write_moments<decltype(code)>(format.state, decoded[k], random, moment, first, left);
    });
  }
}

void update_low_precision_tile(const Record& record, const Row& row, const float* grad, int64_t offset, int64_t count) {
  update_chunks(low_precision_tile(record, row, offset), grad, 0, count);
}

// A tile that eight_bit.h is for, but for what it leaves to others.
void update_eight_bit_tile(const Record& record, const Row& given, int64_t offset, int64_t count) {
  const LowPrecisionTile tile = low_precision_tile(record, given, offset);
  const auto update_range = [&](int64_t begin, int64_t end) {
    float wide[kChunk];
    widen(record.grad_dtype, record.grad, offset + begin, end - begin, wide);
    update_chunks(tile, wide, begin, end);
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

// Writes the mean of all gradients since the group last moved to `mean`; `grad` may be absent.
void take_mean(const Record& record, const Row& row, float unscale, const float* grad, int64_t offset, int64_t count,
               float* __restrict mean) {
  const float* grad_sum = pointer<const float>(record.grad_sum, offset);
  for (int64_t i = 0; i < count; ++i) mean[i] = mean_gradient(row, grad_sum[i], grad ? unscale * grad[i] : 0.0f);
}

// In the order of summation.h; elements from `count` on do not count.
double sum_of_squares(const float* elements, int64_t count) {
  constexpr int row = 4 * kLanes;  // elements that the lanes take at a time
  float padded[kTileElements];
  if (count < kTileElements) {
    for (int64_t i = 0; i < kTileElements; ++i) padded[i] = i < count ? elements[i] : 0.0f;
    elements = padded;
  }
  double parts[row], lanes[kLanes];
  for (int i = 0; i < row; ++i) {
    double sum = square(elements[i]);
    for (int k = 1; k < kLaneEntries; ++k) sum += square(elements[k * row + i]);
    parts[i] = sum;
  }
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = add_parts(parts + 4 * lane);
  return fold_lanes(lanes);
}

// What projecting onto a joint set needs to know of a tile.
void report_tile(const StepArgs& args, int64_t t, const Tile& tile, const Record& record, int64_t count, bool moved) {
  __atomic_store_n(args.moved + tile.record, moved, __ATOMIC_RELAXED);  // all tiles of a record say the same
  if (args.sets[record.set - 1].kind == kBall) {
    args.set_sums[t] = sum_of_squares(pointer<const float>(record.param, tile.offset), count);
  }
}

// A gradient as float32: where it lies, or widened into `wide`; null where there is none.
const float* gradient_of(const Record& record, int64_t offset, int64_t count, float* wide) {
  if (!record.grad) return nullptr;
  if (record.grad_dtype == kFloat32) return pointer<const float>(record.grad, offset);
  widen(record.grad_dtype, record.grad, offset, count, wide);
  return wide;
}

void update_tiles(const StepArgs& args, int64_t first, int64_t last) {
  const bool moves = !args.found_inf || *args.found_inf == 0.0f;
  const float unscale = unscaling(args.grad_scale);
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = args.tiles[t];
    const Record& record = args.records[tile.record];
    const int64_t left = record.numel - tile.offset;
    const int64_t count = left < kTileElements ? left : kTileElements;
    float wide[kTileElements], mean[kTileElements];
    const Turn turn = turn_of(args, tile.record, record);
    const bool is_widened = turn.sums() || !is_eight_bit(record, args.rows[record.row].rule);
    const float* const gradient =
        is_widened ? gradient_of(record, tile.offset, count, wide) : pointer<const float>(record.grad, 0);
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
      if (is_widened) {
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
    if (args.sets && record.set) report_tile(args, t, tile, record, count, moves && turn.moves(gradient));
  }
}

double tile_sum(const StatisticsArgs& args, int64_t t) {
  const Tile tile = args.tiles[t];
  const Record& record = args.records[tile.record];
  const Turn turn = turn_of(args, tile.record, record);
  if (!turn.moves(record.grad)) return 0;
  const float unscale = unscaling(args.grad_scale);
  const int64_t left = record.numel - tile.offset;
  const int64_t count = left < kTileElements ? left : kTileElements;
  float wide[kTileElements], effective[kTileElements];
  const float* const gradient = gradient_of(record, tile.offset, count, wide);
  const float* grad = gradient;
  if (turn.sums()) {
    take_mean(record, args.rows[record.row], unscale, gradient, tile.offset, count, effective);
    grad = effective;
  } else if (args.grad_scale) {
    for (int64_t i = 0; i < count; ++i) effective[i] = unscale * gradient[i];
    grad = effective;
  }
  return sum_of_squares(grad, count);
}

void stream_adam(float* __restrict param, const float* __restrict grad, float* __restrict exp_avg,
                 float* __restrict exp_avg_sq, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = grad[i];
    param[i] += g;
    exp_avg[i] += g;
    exp_avg_sq[i] += g;
  }
}

}  // namespace

extern const Kernel SF_CONCAT(kernel_, SF_ISA) = {SF_STRING(SF_ISA), update_tiles, tile_sum, stream_adam};

}  // namespace sf
