// Gradient statistics on the CPU.
#pragma once

#include "cpu/step.h"

namespace sf {

// Fills args.digits and args.statistics for the tiles of the launch.
void compute_statistics(const StatisticsArgs& args, SumTiles sum_tiles, int threads);

}  // namespace sf
