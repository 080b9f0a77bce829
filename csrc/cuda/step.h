#pragma once

#include "tables.h"

namespace sf {

// Enqueues one kernel on `stream` (a cudaStream_t as an integer) of `device`. Leaves that device current: the caller
// restores another, as the runtime linked in here may not know what torch's takes for current. Returns null, or what
// went wrong.
const char* launch_step(const StepArgs& args, int device, int64_t stream);

// The part of launch_step for records of which some are not float32, on the current device.
const char* launch_low_precision(const StepArgs& args, int64_t stream);

// Likewise; the launch's statistics have to be all zero bytes before the first one.
const char* launch_statistics(const StatisticsArgs& args, int device, int64_t stream);

// Likewise, after launch_step with the same sets.
const char* launch_project(const ProjectArgs& args, int device, int64_t stream);

// Versions as CUDA encodes them (13000 = 13.0); the driver's is 0 where there is none.
int runtime_version();
int driver_version();

}  // namespace sf
