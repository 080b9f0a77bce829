// Updates arrays of float32. The compiler vectorises the scalar rule of update_rule.h, so that no rule is written
// twice. Part of step.cpp, and compiled with it for each instruction set.
#pragma once

#include "update_rule.h"

namespace sf {
namespace {

// The arrays that an update reads and writes; those that its rule does not use may be null.
struct Elements {
  float* param;
  const float* grad;
  float *exp_avg, *exp_avg_sq, *max_exp_avg_sq, *ema;
};

template <int RULE>
SF_HOST_DEVICE void update_elements(const Row& row, const Elements& of, int64_t count) {
  float* __restrict param = of.param;
  const float* __restrict grad = of.grad;
  float* __restrict exp_avg = of.exp_avg;
  float* __restrict exp_avg_sq = of.exp_avg_sq;
  float* __restrict max_exp_avg_sq = of.max_exp_avg_sq;
  float* __restrict ema = of.ema;
  const Row scalars = row;  // a local copy, which stores through float* cannot alias
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

}  // namespace
}  // namespace sf
