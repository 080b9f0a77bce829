// Computes the scalars of a hyperparameter row that change with step count and rate, in double precision and rounded
// once: on the host, or in the kernel where step counts live on the device. numerics/bias_correction.py in
// stackelberg_fused does the same operations in the same order.
#pragma once

#include "host_device.h"
#include "tables.h"

namespace sf {

// base ** exponent by binary exponentiation: multiplications alone, in the same order in every language.
SF_HOST_DEVICE double integer_power(double base, int64_t exponent) {
  double result = 1.0;
  while (exponent > 0) {
    if (exponent & 1) result *= base;
    exponent >>= 1;
    if (exponent) base *= base;
  }
  return result;
}

struct BiasCorrections {
  double factor;  // of the rate: sqrt(1 - beta2^t) / (1 - beta1^t)
  double bias_correction2_sqrt;
};

// Kingma & Ba 2015, end of section 2.
SF_HOST_DEVICE BiasCorrections bias_corrections(double beta1, double beta2, int64_t step) {
  const double bias_correction2_sqrt = root(1.0 - integer_power(beta2, step));
  return {bias_correction2_sqrt / (1.0 - integer_power(beta1, step)), bias_correction2_sqrt};
}

// Writes the fields of a row that depend on step count and rate.
SF_HOST_DEVICE void complete_row(Row& row, const GroupScalars& group, double lr, const BiasCorrections& corrections,
                                 int64_t step) {
  row.step = static_cast<int32_t>(step & 0x7fffffff);
  row.param_decay = static_cast<float>(1.0 - lr * group.decay);
  row.step_size = static_cast<float>(lr * corrections.factor);
  row.eps = static_cast<float>(group.eps * corrections.bias_correction2_sqrt);
}

}  // namespace sf
