// SF_LAUNCH launches a kernel. Sources use it instead of <<<>>> so that tests/support/host_cuda can compile them with
// g++, behind a shim that defines SF_LAUNCH and the CUDA built-ins.
#pragma once

#ifndef SF_LAUNCH
#include <cuda_runtime.h>
#define SF_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<grid, block, 0, reinterpret_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif

namespace sf {

// The error of the launch just made, or null.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sf
