// Adam's bias corrections in double precision; stackelberg_fused/bias_correction.py is the same, operation by
// operation.
#pragma once

#include <cmath>
#include <cstdint>

namespace sf {

// base ** exponent by binary exponentiation: multiplications only, in this order in every language.
inline double integer_power(double base, int64_t exponent) {
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
inline BiasCorrections bias_corrections(double beta1, double beta2, int64_t step) {
  const double bias_correction2_sqrt = sqrt(1.0 - integer_power(beta2, step));
  return {bias_correction2_sqrt / (1.0 - integer_power(beta1, step)), bias_correction2_sqrt};
}

}  // namespace sf
