// The launch that projects onto joint sets, on the CPU: see csrc/projection.h.
#pragma once

#include "tables.h"

namespace sf {

// After update_tiles() with the same sets; fills args.set_factors.
void project(const ProjectArgs& args, int threads);

}  // namespace sf
