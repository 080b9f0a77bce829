// The CPU kernel: the update of tiles and the sums of their gradients. step.cpp defines it once per instruction set
// (dispatch.h chooses).
#pragma once

#include "launch_args.h"

namespace sf {

// Updates the tiles [first, last) of args.tiles.
using UpdateTiles = void (*)(const StepArgs& args, int64_t first, int64_t last);
// Returns the sum of squares of the gradients of tile `t` that move parameters now, added in the order of summation.h.
using TileSum = double (*)(const StatisticsArgs& args, int64_t t);

struct Kernel {
  const char* isa;
  UpdateTiles update_tiles;
  TileSum tile_sum;
};

#if SF_X86
extern const Kernel kernel_avx512, kernel_avx2;
#endif
extern const Kernel kernel_baseline;

}  // namespace sf
