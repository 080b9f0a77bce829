// Reads where parameters and gradients lie, at every step and afresh, without a Python call per tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/dlpack.h"
#include "tables.h"

namespace sf {

// stackelberg_fused/reader.py has the same classes in Python, for frameworks without the exchange ABI; a test holds one
// against the other.
class Reader {
 public:
  // `owners` have a `.grad`, `locals` are the tensors whose memory is updated: the same objects, but for shards.
  // `records` and `active` (one byte per slot) are filled by read().
  Reader(const pybind11::list& owners, const pybind11::list& locals, int64_t records, int64_t active,
         const pybind11::capsule& exchange);

  // Brings the slots [first, last) up to date. Returns
  //   moved:    slots whose parameter is not where the record says, or not as it was; their records are left alone;
  //   odd:      slots whose gradient does not have the parameter's layout to the letter; likewise;
  //   changed:  whether a record changed;
  //   switched: whether a gradient appeared or disappeared;
  //   grads:    the gradients, to be kept until the launch is over.
  pybind11::tuple read(int64_t first, int64_t last);

  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  struct Slot {
    PyObject* owner;
    PyObject* local;
    PyObject* get_grad;  // descriptor, or null
    int64_t numel;
    int32_t ndim;
    bool readable;  // else always moved and odd: the caller looks at it
    size_t dims;    // where its shape begins in shapes_, and its strides in strides_
  };

  pybind11::object gradient(const Slot& slot) const;
  bool fits(const Slot& slot, const dlpack::Tensor& tensor) const;
  bool look(PyObject* object, dlpack::Tensor* out) const;

  const dlpack::Exchange* exchange_;
  pybind11::list owners_, locals_, getters_;  // copies: they keep the slots' objects alive
  pybind11::str grad_{"grad"}, is_neg_{"is_neg"};
  std::vector<Slot> slots_;
  std::vector<int64_t> shapes_, strides_;
  dlpack::Device device_{};
  dlpack::DataType dtype_{};
  Record* records_;
  uint8_t* active_;
  bool changed_ = false, switched_ = false;  // since the last read() that returned: one may end in an exception
};

// Where tensors lay at construction: notices one whose memory was exchanged (`state.data = ...`).
class Places {
 public:
  Places(const pybind11::list& tensors, const pybind11::capsule& exchange);

  bool moved() const;

  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  const dlpack::Exchange* exchange_;
  pybind11::list tensors_;
  std::vector<int64_t> addresses_;
};

}  // namespace sf
