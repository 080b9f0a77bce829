// Reads the addresses of parameters and gradients at every step, without a Python call per tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/shards.h"
#include "cpu/tensor_abi.h"
#include "tables.h"

namespace sf {

// stackelberg_fused/native/reader.py has the same class in Python, for a torch that TensorAbi cannot read; a test
// compares the two.
class Reader {
 public:
  // `owners` have a `.grad`; `locals` are the tensors whose memory is updated, which are the same objects unless they
  // are shards. read() fills `records` and `active` (one byte per slot). `dtensor` is the class of shards, None where
  // there are none.
  Reader(const pybind11::list& owners, const pybind11::list& locals, int64_t records, int64_t active,
         std::shared_ptr<const TensorAbi> abi, pybind11::object dtensor);

  // Brings the slots [first, last) up to date. Returns a tuple of
  //   moved:      the slots whose parameter has another address than the record says, another layout than before, or
  //               another tensor as its shard; their records do not change;
  //   mismatched: the slots whose gradient does not have exactly the parameter's layout, over ranks too; likewise;
  //   changed:    true if a record changed;
  //   switched:   true if a gradient appeared or disappeared;
  //   gradients:  an object that keeps the gradients alive; the caller drops it when the launch is over.
  pybind11::tuple read(int64_t first, int64_t last);

  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  struct Slot {
    PyObject* owner;
    PyObject* local;
    int64_t numel;
    int64_t ndim;
    bool readable;       // if not, the slot is always both moved and mismatched, and the caller reads it
    int32_t dtype;       // libtorch's number for the parameter's dtype
    int64_t grad_dtype;  // Dtype of a gradient that fits
    size_t dims;         // index of its first dimension in shapes_ and strides_
    // of a shard, else null: a spec that lays a gradient out as its parameter, the last one seen. FSDP shares one among
    // many, so that nearly always it is the object itself
    pybind11::object spec;
    TensorAbi::Trail grad;
  };

  // Returns true if the slot has a gradient, and adds it to `gradients`. `fits` becomes true if the gradient can be
  // read in the parameter's layout.
  bool read_gradient(Slot& slot, TensorAbi::HeldTensors* gradients, int64_t* address, bool* fits) const;
  // The same of a shard.
  bool read_shard_gradient(Slot& slot, pybind11::object grad, TensorAbi::HeldTensors* gradients, int64_t* address,
                           bool* fits) const;
  // Ask for memory that slots after `i` will read.
  void look_ahead(int64_t i, int64_t last) const;
  // The same for shards; finds the gradients of some of them, `grads[slot]`.
  void look_ahead(int64_t i, int64_t first, int64_t last, pybind11::object* grads) const;
  // Whether a gradient, or its shard, can be read in the parameter's layout.
  bool is_readable(const Slot& slot, PyObject* tensor, TensorView* view) const;
  // Whether the slot's parameter still holds the shard that it held at construction.
  bool keeps_shard(const Slot& slot) const { return !slot.spec || shards_->local(slot.owner) == slot.local; }
  // Returns true if a tensor has the layout that the slot had at construction, and memory of its own.
  bool fits(const Slot& slot, const TensorView& tensor) const;

  std::shared_ptr<const TensorAbi> abi_;
  std::unique_ptr<const ShardReader> shards_;
  pybind11::list owners_, locals_;  // copies of the lists, which keep the slots' objects alive
  pybind11::str grad_{"grad"}, is_neg_{"is_neg"};
  std::vector<Slot> slots_;
  std::vector<int64_t> shapes_, strides_;
  TensorView first_{};  // the first readable tensor, whose device all share
  Record* records_;
  uint8_t* active_;
  // members and not locals of read(): if that throws, the next call reports its changes
  bool changed_ = false, switched_ = false;
};

}  // namespace sf
