// The launch that projects onto joint sets on the CPU (csrc/projection.h).
#pragma once

#include "launch_args.h"

namespace sf {

// Projects what update_tiles() has moved, with the same sets; also fills args.set_factors.
void project(const ProjectArgs& args, int threads);

}  // namespace sf
