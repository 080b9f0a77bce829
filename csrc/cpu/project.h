// The launch that projects onto joint sets on the CPU (csrc/projection.h).
#pragma once

#include "launch_args.h"

namespace sf {

// Fills args.set_digits and args.set_factors of the balls among the tiles of the launch, after update_tiles().
void conclude_balls(const StepArgs& args);

// Projects what update_tiles() has moved, with the same sets.
void project(const ProjectArgs& args, int threads);

}  // namespace sf
