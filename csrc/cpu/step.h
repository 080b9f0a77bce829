// The CPU kernel: the update of tiles and the sums of their gradients. step.cpp defines it once per instruction set
// (dispatch.h chooses).
#pragma once

#include "launch_args.h"

namespace sf {

// Updates the tiles [first, last) of args.tiles.
using UpdateTiles = void (*)(const StepArgs& args, int64_t first, int64_t last);
// Adds the squares of the gradients of the tiles [first, last) that move parameters now to args.sums.
using SumTiles = void (*)(const StatisticsArgs& args, int64_t first, int64_t last);

struct Kernel {
  const char* isa;
  UpdateTiles update_tiles;
  SumTiles sum_tiles;
};

#if SF_X86
extern const Kernel kernel_avx512, kernel_avx2;
#endif
extern const Kernel kernel_baseline;

}  // namespace sf
