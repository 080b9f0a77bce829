// Gradient statistics on the CPU, in the order of csrc/summation.h.
#pragma once

#include "cpu/step.h"

namespace sf {

// Fills args.tile_sums for the tiles of the launch, and args.statistics.
void compute_statistics(const StatisticsArgs& args, TileSum tile_sum, int threads);

}  // namespace sf
