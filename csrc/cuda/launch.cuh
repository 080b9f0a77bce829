// How kernels are launched. tests/support/host_cuda compiles the same files by g++, where SF_LAUNCH and the CUDA
// built-ins come from a shim.
#pragma once

#ifndef SF_LAUNCH
#include <cuda_runtime.h>
#define SF_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<grid, block, 0, reinterpret_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#endif

namespace sf {

// Null, or what went wrong with the launch just made.
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace sf
