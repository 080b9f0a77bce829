// The CPU kernel: the update of tiles and the sums of their gradients. step.cpp defines it once per instruction set
// (dispatch.h chooses).
#pragma once

#include "launch_args.h"

namespace sf {

// How many elements an update took by each of its paths, which give the same bits: float32 where they lie; other
// formats by vectors (vector_path.h), or a chunk at a time (low_precision.h).
struct PathCounts {
  int64_t in_place, vectors, chunks;
};

// Updates the tiles [first, last) of args.tiles.
using UpdateTiles = PathCounts (*)(const StepArgs& args, int64_t first, int64_t last);
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
