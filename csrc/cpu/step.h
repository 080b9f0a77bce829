// The CPU kernel, compiled once per instruction set (see step.cpp) and chosen at run time (see dispatch.cpp).
#pragma once

#include "tables.h"

namespace sf {

// Updates the tiles [first, last) of args.tiles.
using UpdateTiles = void (*)(const StepArgs& args, int64_t first, int64_t last);
// The sum of squares of the gradients of tile `t` that move parameters now, in the order of summation.h.
using TileSum = double (*)(const StatisticsArgs& args, int64_t t);
// Reads four arrays and writes three, element i of each once: the memory floor of a float32 Adam step (28 B/element).
using StreamAdam = void (*)(float* param, const float* grad, float* exp_avg, float* exp_avg_sq, int64_t count);

struct Kernel {
  const char* isa;
  UpdateTiles update_tiles;
  TileSum tile_sum;
  StreamAdam stream_adam;
};

#if SF_X86
extern const Kernel kernel_avx512, kernel_avx2;
#endif
extern const Kernel kernel_baseline;

// The widest kernel this processor runs, or the one named `isa`; null when that one cannot run here.
const Kernel* select_kernel(const char* isa);

}  // namespace sf
