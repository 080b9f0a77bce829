// One pass over each tile. Compiled once per instruction set with -DSF_ISA=avx512 | avx2 | baseline; the compiler
// vectorises the scalar rule, so no rule is written twice.
#include "cpu/kernel.h"
#include "summation.h"
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
void update_tile(const Record& record, const Row& row, int64_t offset, int64_t count) {
  float* __restrict param = pointer<float>(record.param, offset);
  const float* __restrict grad = pointer<const float>(record.grad, offset);
  float* __restrict exp_avg = pointer<float>(record.exp_avg, offset);
  float* __restrict exp_avg_sq = pointer<float>(record.exp_avg_sq, offset);
  float* __restrict max_exp_avg_sq = pointer<float>(record.max_exp_avg_sq, offset);
  const Row scalars = row;  // a copy of its own, so that stores through float* cannot alias it
  for (int64_t i = 0; i < count; ++i) {
    float p = param[i], m = 0, v = 0, v_max = 0;
    if constexpr (uses_exp_avg<RULE>) m = exp_avg[i];
    if constexpr (uses_exp_avg_sq<RULE>) v = exp_avg_sq[i];
    if constexpr (uses_max_exp_avg_sq<RULE>) v_max = max_exp_avg_sq[i];
    update_element<RULE>(scalars, p, grad[i], m, v, v_max);
    param[i] = p;
    if constexpr (uses_exp_avg<RULE>) exp_avg[i] = m;
    if constexpr (uses_exp_avg_sq<RULE>) exp_avg_sq[i] = v;
    if constexpr (uses_max_exp_avg_sq<RULE>) max_exp_avg_sq[i] = v_max;
  }
}

void update_tiles(const StepArgs& args, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; ++t) {
    const Tile tile = args.tiles[t];
    const Record& record = args.records[tile.record];
    if (!record.grad) continue;
    Row row = args.rows[record.row];
    row.grad_sign *= gradient_factor(args, t);
    const int64_t left = record.numel - tile.offset;
    const int64_t count = left < kTileElements ? left : kTileElements;
    switch (row.rule) {
#define SF_CASE(rule)                                     \
  case (rule):                                            \
    update_tile<(rule)>(record, row, tile.offset, count); \
    break;
      SF_FOR_EACH_RULE(SF_CASE)
#undef SF_CASE
    }
  }
}

double tile_sum(const Record& record, int64_t offset) {
  constexpr int row = 4 * kLanes;  // elements that the lanes take at a time
  const float* grad = pointer<const float>(record.grad, offset);
  if (!grad) return 0;
  const int64_t count = record.numel - offset;
  float padded[kTileElements];
  if (count < kTileElements) {
    for (int64_t i = 0; i < kTileElements; ++i) padded[i] = i < count ? grad[i] : 0.0f;
    grad = padded;
  }
  double parts[row], lanes[kLanes];
  for (int i = 0; i < row; ++i) {
    double sum = square(grad[i]);
    for (int k = 1; k < kLaneEntries; ++k) sum += square(grad[k * row + i]);
    parts[i] = sum;
  }
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = add_parts(parts + 4 * lane);
  for (int half = kLanes / 2; half; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
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
