// One pass over each tile. Compiled once per instruction set with -DSF_ISA=avx512 | avx2 | baseline; the compiler
// vectorises the scalar rule, so no rule is written twice.
#include "cpu/kernel.h"

#include <cstring>

#include "summation.h"
#include "turn.h"
#include "update_rule.h"

#define SF_CONCAT_(a, b) a##b
#define SF_CONCAT(a, b) SF_CONCAT_(a, b)
#define SF_STRING_(a) #a
#define SF_STRING(a) SF_STRING_(a)

namespace sf {
namespace {

template <typename T>
T* pointer(int64_t address, int64_t offset) {
  return address ? reinterpret_cast<T*>(address) + offset : nullptr;
}

template <int RULE>
void update_tile(const Record& record, const Row& row, const float* __restrict grad, int64_t offset, int64_t count) {
  float* __restrict param = pointer<float>(record.param, offset);
  float* __restrict exp_avg = pointer<float>(record.exp_avg, offset);
  float* __restrict exp_avg_sq = pointer<float>(record.exp_avg_sq, offset);
  float* __restrict max_exp_avg_sq = pointer<float>(record.max_exp_avg_sq, offset);
  float* __restrict ema = pointer<float>(record.ema, offset);
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

void update_tiles(const StepArgs& args, int64_t first, int64_t last) {
  const bool moves = !args.found_inf || *args.found_inf == 0.0f;
  const float unscale = unscaling(args.grad_scale);
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = args.tiles[t];
    const Record& record = args.records[tile.record];
    const int64_t left = record.numel - tile.offset;
    const int64_t count = left < kTileElements ? left : kTileElements;
    float* const gradient = pointer<float>(record.grad, tile.offset);
    const Turn turn = turn_of(args, tile.record, record);
    float* const grad_sum = pointer<float>(record.grad_sum, tile.offset);
    float mean[kTileElements];
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
      switch (row.rule) {
#define SF_CASE(rule)                                           \
  case (rule):                                                  \
    update_tile<(rule)>(record, row, grad, tile.offset, count); \
    break;
        SF_FOR_EACH_RULE(SF_CASE)
#undef SF_CASE
      }
      if (turn.sums()) std::memset(grad_sum, 0, count * sizeof(float));
    } else if (moves && turn.adds(gradient)) {
      for (int64_t i = 0; i < count; ++i) grad_sum[i] += unscale * gradient[i];
    }
    if (args.zero_grads && gradient) std::memset(gradient, 0, count * sizeof(float));
    if (args.sets && record.set) report_tile(args, t, tile, record, count, moves && turn.moves(gradient));
  }
}

double tile_sum(const StatisticsArgs& args, int64_t t) {
  const Tile tile = args.tiles[t];
  const Record& record = args.records[tile.record];
  const float* gradient = pointer<const float>(record.grad, tile.offset);
  const Turn turn = turn_of(args, tile.record, record);
  if (!turn.moves(gradient)) return 0;
  const float unscale = unscaling(args.grad_scale);
  const int64_t left = record.numel - tile.offset;
  const int64_t count = left < kTileElements ? left : kTileElements;
  float effective[kTileElements];
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
