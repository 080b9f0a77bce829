// Reads where parameters and gradients lie, at every step and afresh, without a Python call per tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/tensor_abi.h"
#include "tables.h"

namespace sf {

// stackelberg_fused/native/reader.py has the same classes in Python, for a torch that TensorAbi cannot read; a test
// holds one against the other.
class Reader {
 public:
  // `owners` have a `.grad`, `locals` are the tensors whose memory is updated: the same objects, but for shards.
  // `records` and `active` (one byte per slot) are filled by read().
  Reader(const pybind11::list& owners, const pybind11::list& locals, int64_t records, int64_t active,
         std::shared_ptr<const TensorAbi> abi);

  // Brings the slots [first, last) up to date. Returns
  //   moved:    slots whose parameter is not where the record says, or not as it was; their records are left alone;
  //   odd:      slots whose gradient does not have the parameter's layout to the letter; likewise;
  //   changed:  whether a record changed;
  //   switched: whether a gradient appeared or disappeared;
  //   kept:     keeps the gradients until the launch is over.
  pybind11::tuple read(int64_t first, int64_t last);

  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  struct Slot {
    PyObject* owner;
    PyObject* local;
    int64_t numel;
    int64_t ndim;
    bool readable;       // else always moved and odd: the caller looks at it
    int32_t dtype;       // libtorch's, of the parameter, and
    int64_t grad_dtype;  // ours, of a gradient that fits
    size_t dims;         // where its shape begins in shapes_, and its strides in strides_
    TensorAbi::Trail grad;
  };

  // Whether the slot has a gradient, which is kept; `fits` is whether it can be read as the slot's parameter is.
  bool read_gradient(Slot& slot, TensorAbi::Kept* kept, int64_t* address, bool* fits) const;
  // Whether a tensor is laid out as the slot was at construction, with memory of its own.
  bool fits(const Slot& slot, const TensorView& tensor) const;

  std::shared_ptr<const TensorAbi> abi_;
  pybind11::list owners_, locals_;  // copies: they keep the slots' objects alive
  pybind11::str grad_{"grad"}, is_neg_{"is_neg"};
  std::vector<Slot> slots_;
  std::vector<int64_t> shapes_, strides_;
  TensorView first_{};  // a device, which all of them share
  Record* records_;
  uint8_t* active_;
  bool changed_ = false, switched_ = false;  // since the last read() that returned: one may end in an exception
};

// Where tensors lay at construction: notices one whose memory was exchanged (`state.data = ...`).
class AddressSnapshot {
 public:
  AddressSnapshot(const pybind11::list& tensors, std::shared_ptr<const TensorAbi> abi);

  bool moved() const;

  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  std::shared_ptr<const TensorAbi> abi_;
  pybind11::list tensors_;
  std::vector<int64_t> addresses_;
};

}  // namespace sf
