// The launches of the CUDA kernels. Each enqueues one kernel.
#pragma once

#include "launch_args.h"

namespace sf {

// Updates the tiles of a launch on `stream` (a cudaStream_t as an integer) of `device`. It leaves that device current;
// the caller has to restore another one, because torch's CUDA runtime is not the one linked in here and may have
// another current device. Returns null, or the error.
const char* launch_step(const StepArgs& args, int device, int64_t stream);

// The part of launch_step for tables in which some record is not float32, on the current device.
const char* launch_low_precision(const StepArgs& args, int64_t stream);

// Computes gradient statistics. args.statistics has to be all zero bytes before the first launch.
const char* launch_statistics(const StatisticsArgs& args, int device, int64_t stream);

// Writes what follows from args.digits: sums of several tables or ranks.
const char* launch_conclude(const StatisticsArgs& args, int device, int64_t stream);

// Projects onto joint sets, after launch_step with the same sets.
const char* launch_project(const ProjectArgs& args, int device, int64_t stream);

// Versions in CUDA's encoding (13000 = 13.0); driver_version() is 0 without a driver.
int runtime_version();
int driver_version();

}  // namespace sf
