// One pass over each tile. Compiled once per instruction set with -DSF_ISA=avx512 | avx2 | baseline; the compiler
// vectorises the scalar rule, so no rule is written twice.
#include "cpu/kernel.h"

#include <cstring>

#include "cpu/narrow.h"
#include "summation.h"
#include "turn.h"
#include "update_rule.h"

#define SF_CONCAT_(a, b) a##b
#define SF_CONCAT(a, b) SF_CONCAT_(a, b)
#define SF_STRING_(a) #a
#define SF_STRING(a) SF_STRING_(a)

namespace sf {
namespace {

// What an update reads and writes, element by element; those that its rule does not use may be null.
struct Elements {
  float* param;
  const float* grad;
  float *exp_avg, *exp_avg_sq, *max_exp_avg_sq, *ema;
};

template <int RULE>
void update_elements(const Row& row, const Elements& of, int64_t count) {
  float* __restrict param = of.param;
  const float* __restrict grad = of.grad;
  float* __restrict exp_avg = of.exp_avg;
  float* __restrict exp_avg_sq = of.exp_avg_sq;
  float* __restrict max_exp_avg_sq = of.max_exp_avg_sq;
  float* __restrict ema = of.ema;
  const Row scalars = row;  // a copy of its own, so that stores through float* cannot alias it
  for (int64_t i = 0; i < count; ++i) {
    float p = param[i], m = 0, v = 0, v_max = 0, e = 0;
    if constexpr (uses_exp_avg<RULE>) m = exp_avg[i];
    if constexpr (uses_exp_avg_sq<RULE>) v = exp_avg_sq[i];
    if constexpr (uses_max_exp_avg_sq<RULE>) v_max = max_exp_avg_sq[i];
    if constexpr (uses_ema<RULE>) e = ema[i];
    update_element<RULE>(scalars, p, grad[i], m, v, v_max, e);
    param[i] = p;
    if constexpr (uses_exp_avg<RULE>) exp_avg[i] = m;
    if constexpr (uses_exp_avg_sq<RULE>) exp_avg_sq[i] = v;
    if constexpr (uses_max_exp_avg_sq<RULE>) max_exp_avg_sq[i] = v_max;
    if constexpr (uses_ema<RULE>) ema[i] = e;
  }
}

void update_by_rule(const Row& row, const Elements& of, int64_t count) {
  switch (row.rule) {
#define SF_CASE(rule)                        \
  case (rule):                               \
    update_elements<(rule)>(row, of, count); \
    break;
    SF_FOR_EACH_RULE(SF_CASE)
#undef SF_CASE
  }
}

// A tile of float32 with float32 state, updated where it lies.
void update_tile(const Record& record, const Row& row, const float* grad, int64_t offset, int64_t count) {
  const Elements of = {pointer<float>(record.param, offset),          grad,
                       pointer<float>(record.exp_avg, offset),        pointer<float>(record.exp_avg_sq, offset),
                       pointer<float>(record.max_exp_avg_sq, offset), pointer<float>(record.ema, offset)};
  update_by_rule(row, of, count);
}

// A tile stored in any other way: chunk by chunk decoded, updated and encoded.
void update_narrow_tile(const Record& record, const Row& given, const float* grad, int64_t offset, int64_t count) {
  const Format format = format_of(record.format);
  Row row = given;
  row.low = rounded_inside(row.low, format.param, true);
  row.high = rounded_inside(row.high, format.param, false);
  const Stream stream = tile_stream(record.key, row.step, offset / kTileElements);
  const bool is_decoded = format.state != kState32;
  alignas(64) float weight[kChunk], decoded[3][kChunk];
  alignas(64) uint32_t random[kChunk];
  for (int64_t done = 0; done < count; done += kChunk) {
    const int64_t first = offset + done, left = count - done < kChunk ? count - done : kChunk;
    if (draws(format)) draw(stream, static_cast<uint32_t>(done), left, random);
    read_weights(record, format, first, left, weight);
    float* moments[3] = {};
    for_each_moment(record, row.rule, [&](auto code, const Moment& moment, int k) {
      moments[k] = is_decoded ? decoded[k] : pointer<float>(moment.address, first);
      if (is_decoded) read_moments<decltype(code)>(format.state, moment, first, left, decoded[k]);
    });
    update_by_rule(row, {weight, grad + done, moments[0], moments[1], moments[2], pointer<float>(record.ema, first)},
                   left);
    write_weights(record, format, first, left, weight, random);
    if (!is_decoded) continue;
    for_each_moment(record, row.rule, [&](auto code, const Moment& moment, int k) {
      write_moments<decltype(code)>(format.state, decoded[k], random, moment, first, left);
    });
  }
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
    const float* const gradient = gradient_of(record, tile.offset, count, wide);
    const Turn turn = turn_of(args, tile.record, record);
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
      (record.format ? update_narrow_tile : update_tile)(record, row, grad, tile.offset, count);
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
