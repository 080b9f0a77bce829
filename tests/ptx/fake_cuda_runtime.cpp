// A CUDA runtime without a GPU: it hands each launch to a callback, with the arguments as a GPU would get them. Tests
// link it in the place of NVIDIA's, under the sources of the extension module as they are.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <unordered_map>

namespace {

// Returns 0, or what is to be the error of the launch. `args` points at each argument of the kernel.
using OnLaunch = int (*)(const char* kernel, const dim3* grid, const dim3* block, uint64_t dynamic_shared,
                         uint64_t stream, void* const* args);

struct Configuration {
  dim3 grid, block;
  size_t dynamic_shared;
  cudaStream_t stream;
};

OnLaunch on_launch = nullptr;
thread_local Configuration configuration;
thread_local cudaError_t last_error = cudaSuccess;

// The kernels' names in the PTX by the functions that stand for them on the host. Filled before main().
std::unordered_map<const void*, std::string>& kernels() {
  static std::unordered_map<const void*, std::string> names;
  return names;
}

cudaError_t launch(const void* stub, dim3 grid, dim3 block, void** args, size_t dynamic_shared, cudaStream_t stream) {
  const auto kernel = kernels().find(stub);
  if (kernel == kernels().end()) return last_error = cudaErrorInvalidDeviceFunction;
  if (!on_launch) return last_error = cudaErrorNoDevice;
  if (grid.x == 0 || block.x == 0 || block.x > 1024) return last_error = cudaErrorInvalidConfiguration;
  const int error =
      on_launch(kernel->second.c_str(), &grid, &block, dynamic_shared, reinterpret_cast<uint64_t>(stream), args);
  return last_error = static_cast<cudaError_t>(error);
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void sf_set_on_launch(OnLaunch callback) { on_launch = callback; }

// What code that nvcc generates calls.
void** __cudaRegisterFatBinary(void* binary) { return static_cast<void**>(binary); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* stub, char*, const char* name, int, void*, void*, dim3*, dim3*, int*) {
  kernels()[stub] = name;
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t dynamic_shared, cudaStream_t stream) {
  configuration = {grid, block, dynamic_shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* dynamic_shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *dynamic_shared = configuration.dynamic_shared;
  *static_cast<cudaStream_t*>(stream) = configuration.stream;
  return cudaSuccess;
}
// from CUDA 13 on; a handle is the stub
cudaError_t __cudaGetKernel(void** handle, const void* stub) {
  *handle = const_cast<void*>(stub);
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(void* handle, dim3 grid, dim3 block, void** args, size_t dynamic_shared,
                               cudaStream_t stream) {
  return launch(handle, grid, block, args, dynamic_shared, stream);
}

cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** args, size_t dynamic_shared,
                             cudaStream_t stream) {
  return launch(stub, grid, block, args, dynamic_shared, stream);
}
cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidDevice:
      return "there is one device, 0";
    case cudaErrorInvalidDeviceFunction:
      return "a kernel that was not registered";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNoDevice:
      return "nobody catches launches";
    default:
      return "whoever caught the launch refused it";
  }
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

}  // extern "C"
