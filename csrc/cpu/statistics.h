// Gradient statistics on the CPU.
#pragma once

#include "cpu/step.h"

namespace sf {

// Fills args.digits and args.statistics for the tiles of the launch.
void compute_statistics(const StatisticsArgs& args, SumTiles sum_tiles, int threads);

// Fills args.statistics for what args.digits hold: sums of several tables or ranks.
void conclude_digits(const StatisticsArgs& args);

}  // namespace sf
