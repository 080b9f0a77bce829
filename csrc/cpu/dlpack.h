// The part of DLPack's C exchange ABI (version 1) that reads a tensor without owning it, declared here so that building
// needs no framework: https://dmlc.github.io/dlpack/latest/c_api.html. A framework offers the table as a capsule,
// `__dlpack_c_exchange_api__`, on its tensor type (torch since 2.10).
#pragma once

#include <cstdint>

namespace sf::dlpack {

constexpr uint32_t kMajorVersion = 1;
constexpr char kCapsuleName[] = "dlpack_exchange_api";

struct Device {
  int32_t type;
  int32_t index;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

// shape and strides (in elements) belong to the tensor and are read at once.
struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;
};

struct ExchangeHeader {
  uint32_t major;
  uint32_t minor;
  const ExchangeHeader* previous;
};

struct Exchange {
  ExchangeHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  // 0, or -1 with a Python exception set; may be null.
  int (*tensor_from_py_object_no_sync)(void* py_object, Tensor* out);
  void* current_work_stream;
};

}  // namespace sf::dlpack
