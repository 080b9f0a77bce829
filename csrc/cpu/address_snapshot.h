// Notices that the memory of a tensor was exchanged (`state.data = ...`).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/tensor_abi.h"

namespace sf {

// The addresses of tensors at construction. stackelberg_fused/native/change_detection.py has the same class in Python.
class AddressSnapshot {
 public:
  // Throws TypeError for what is not a strided tensor.
  AddressSnapshot(const pybind11::list& tensors, std::shared_ptr<const TensorAbi> abi);

  // Returns true if any tensor has another address now, or can no longer be read.
  bool moved() const;

  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  std::shared_ptr<const TensorAbi> abi_;
  pybind11::list tensors_;
  std::vector<int64_t> addresses_;
};

}  // namespace sf
