// The update rules, once for C++ and CUDA. stackelberg_fused/numerics/update_rule.py and triton_kernels/update_rule.py
// have the same names and the same step comments.
//
// Both compilers run with contraction off (-ffp-contract=off, -fmad=false): every fused multiply-add below is explicit,
// and division and square root are IEEE's, so host and device produce the same bits.
#pragma once

#include "codec.h"
#include "host_device.h"
#include "tables.h"
#if defined(__CUDA_ARCH__)
#include "cuda/ptx.cuh"
#endif

namespace sf {

SF_HOST_DEVICE float fused_multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

SF_HOST_DEVICE float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}

// The operations of a rule that C++ has no operators for, correctly rounded for all operands. Rules take them as a
// parameter: cpu/vector_path.h has them for vectors, cuda/in_range_math.cuh without the checks for operands that are
// very large or very small; both give the same bits.
struct Ieee {
  SF_HOST_DEVICE_MEMBER static float multiply_add(float a, float b, float c) { return fused_multiply_add(a, b, c); }
  SF_HOST_DEVICE_MEMBER static float ratio(float exp_avg, float second_moment, float eps) {
    const float denom = square_root(second_moment) + eps;
    return exp_avg / denom;
  }
  // x, negated where the sign bit of `of` is set
  SF_HOST_DEVICE_MEMBER static float times_sign(float x, float of) {
    return float_of(bits_of(x) ^ (bits_of(of) & ~kMagnitude));
  }
};

// Linear interpolation, computed from the nearer end, because a large old value would swallow a small new one. `weight`
// is the weight of `to` where that is below one half, else minus the weight of `from`, which may be minus zero.
template <typename Arithmetic, typename Number>
SF_HOST_DEVICE Number interpolate(float weight, Number from, Number to) {
#if defined(__CUDA_ARCH__)
  const Number nearer = ptx::select_by_sign(from, to, weight);
#else
  const Number nearer = weight > 0 ? from : to;
#endif
  return Arithmetic::multiply_add(weight, to - from, nearer);
}

// Adam and AdamW (Kingma & Ba 2015, the efficient form at the end of section 2; Loshchilov & Hutter 2019; AMSGrad:
// Reddi et al. 2018; cautious weight decay: Chen et al. 2025, arXiv 2510.12402). Bias corrections are folded into
// step_size and eps, which saves a division per element.
template <int RULE, typename Arithmetic, typename Number>
SF_HOST_DEVICE void adam_update(const Row& row, Number& param, Number grad, Number& exp_avg, Number& exp_avg_sq,
                                Number& max_exp_avg_sq) {
  // maximize: ascend by negating the gradient
  grad = row.grad_sign * grad;
  // l2 weight decay
  if (RULE & kL2) grad = Arithmetic::multiply_add(row.weight_decay, param, grad);
  // first moment
  exp_avg = interpolate<Arithmetic>(row.lerp_weight, exp_avg, grad);
  // second moment
  exp_avg_sq = Arithmetic::multiply_add(row.one_minus_beta2 * grad, grad, row.beta2 * exp_avg_sq);
  // amsgrad: running maximum; NaN stays NaN
  Number second_moment = exp_avg_sq;
  if constexpr (RULE & kAmsgrad) {
    max_exp_avg_sq = (exp_avg_sq > max_exp_avg_sq || exp_avg_sq != exp_avg_sq) ? exp_avg_sq : max_exp_avg_sq;
    second_moment = max_exp_avg_sq;
  }
  // update, with decoupled weight decay
  const Number update = row.step_size * Arithmetic::ratio(exp_avg, second_moment, row.eps);
  if constexpr (RULE & kCautious) {
    // cautious: a weight decays unless it and the update have opposite signs; their product might underflow
    const auto grows = (Arithmetic::times_sign(update, param) < 0) & (param != 0);
    param = Arithmetic::multiply_add(grows ? 1.0f : row.param_decay, param, -update);
  } else {
    param = Arithmetic::multiply_add(row.param_decay, param, -update);
  }
}

// SGD with momentum (Sutskever et al. 2013 as torch.optim.SGD defines it).
template <int RULE>
SF_HOST_DEVICE void sgd_update(const Row& row, float& param, float grad, float& momentum_buffer) {
  // maximize: ascend by negating the gradient
  grad = row.grad_sign * grad;
  // l2 weight decay
  if (RULE & kL2) grad = fused_multiply_add(row.weight_decay, param, grad);
  // momentum
  if (RULE & kMomentum) {
    momentum_buffer = fused_multiply_add(row.one_minus_dampening, grad, row.momentum * momentum_buffer);
    // nesterov: look ahead along the momentum
    grad = (RULE & kNesterov) ? fused_multiply_add(row.momentum, momentum_buffer, grad) : momentum_buffer;
  }
  // update
  param = fused_multiply_add(-row.step_size, grad, param);
}

// Clamps a parameter to its box. NaN stays NaN; without a box the bounds are infinite and nothing changes.
SF_HOST_DEVICE float project(const Row& row, float param) {
#if defined(__CUDA_ARCH__)
  // volatile: the bounds are read from shared memory for each element, because two more registers would spill
  const float low = const_cast<const volatile Row&>(row).low, high = const_cast<const volatile Row&>(row).high;
#else
  const float low = row.low, high = row.high;
#endif
  return param < low ? low : param > high ? high : param;
}

// Exponential average of the parameters (Polyak & Juditsky 1992).
SF_HOST_DEVICE void ema_update(const Row& row, float param, float& ema) {
  ema = interpolate<Ieee>(row.ema_weight, ema, param);
}

// The mean gradient of a group that moves now, from the sum of its earlier gradients and the current one.
SF_HOST_DEVICE float mean_gradient(const Row& row, float grad_sum, float grad) {
  return row.mean_weight * (grad_sum + grad);
}

// The per-element buffers that a rule reads and writes beyond param and grad.
template <int RULE>
constexpr bool uses_exp_avg = !(RULE & kSgd) || (RULE & kMomentum);
template <int RULE>
constexpr bool uses_exp_avg_sq = !(RULE & kSgd);
template <int RULE>
constexpr bool uses_max_exp_avg_sq = !(RULE & kSgd) && (RULE & kAmsgrad);

template <int RULE>
constexpr bool uses_ema = (RULE & kEma) != 0;

template <int RULE>
SF_HOST_DEVICE void update_element(const Row& row, float& param, float grad, float& exp_avg, float& exp_avg_sq,
                                   float& max_exp_avg_sq, float& ema) {
  if constexpr (RULE & kSgd) {
    sgd_update<RULE>(row, param, grad, exp_avg);
  } else {
    adam_update<RULE, Ieee>(row, param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq);
  }
  param = project(row, param);
  if constexpr (uses_ema<RULE>) ema_update(row, param, ema);
}

}  // namespace sf
