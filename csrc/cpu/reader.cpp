// read() runs at every step and waits mostly for memory, so it prefetches what it will read some slots later.
#include "cpu/reader.h"

#include <stdexcept>

namespace py = pybind11;

namespace sf {
namespace {

bool same_device(const TensorView& a, const TensorView& b) {
  return a.device_type == b.device_type && a.device_index == b.device_index;
}

py::list copied(const py::list& list) {
  return py::reinterpret_steal<py::list>(PyList_GetSlice(list.ptr(), 0, PyList_GET_SIZE(list.ptr())));
}

}  // namespace

Reader::Reader(const py::list& owners, const py::list& locals, int64_t records, int64_t active,
               std::shared_ptr<const TensorAbi> abi, py::object dtensor)
    : abi_(std::move(abi)),
      owners_(copied(owners)),
      locals_(copied(locals)),
      records_(reinterpret_cast<Record*>(records)),
      active_(reinterpret_cast<uint8_t*>(active)) {
  if (!dtensor.is_none()) shards_ = std::make_unique<ShardReader>(py::type(dtensor));
  PyUnicode_InternInPlace(&grad_.ptr());
  PyUnicode_InternInPlace(&is_neg_.ptr());
  if (py::len(owners_) != py::len(locals_)) throw py::value_error("as many local tensors as owners are needed");
  for (size_t i = 0; i < py::len(owners_); ++i) {
    Slot slot{PyList_GET_ITEM(owners_.ptr(), i),
              PyList_GET_ITEM(locals_.ptr(), i),
              1,
              0,
              false,
              0,
              0,
              shapes_.size(),
              {},
              {}};
    const bool is_shard = shards_ && shards_->is_shard(slot.owner) && shards_->local(slot.owner) == slot.local &&
                          shards_->spec(slot.owner);
    TensorView tensor;
    if ((slot.owner == slot.local || is_shard) && abi_->look(slot.local, &tensor)) {
      if (is_shard) slot.spec = py::reinterpret_borrow<py::object>(shards_->spec(slot.owner));
      if (slots_.empty()) first_ = tensor;
      slot.readable = same_device(tensor, first_);
      slot.dtype = tensor.dtype;
      slot.grad_dtype = records_[i].grad_dtype;
      slot.ndim = tensor.ndim;
      for (int64_t d = 0; d < tensor.ndim; ++d) {
        slot.numel *= tensor.shape[d];
        shapes_.push_back(tensor.shape[d]);
        strides_.push_back(tensor.strides[d]);
      }
    }
    slots_.push_back(slot);
  }
}

bool Reader::read_gradient(Slot& slot, TensorAbi::HeldTensors* gradients, int64_t* address, bool* fits) const {
  TensorView tensor;
  // other types may define `.grad` themselves, and of a single element only Python can tell whether it is negated
  if (slot.readable && slot.numel != 1 && abi_->is_common(slot.owner)) {
    const void* grad = abi_->grad(slot.owner);
    if (!grad) return false;
    gradients->add(grad);
    slot.grad = abi_->trail(grad);
    *fits = abi_->look_at(grad, &tensor) && this->fits(slot, tensor);
  } else {
    auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(slot.owner, grad_.ptr()));
    if (!grad) throw py::error_already_set();
    if (grad.is_none()) return false;
    *fits = is_readable(slot, grad.ptr(), &tensor);
    gradients->add(std::move(grad));
  }
  *address = tensor.address;
  return true;
}

bool Reader::read_shard_gradient(Slot& slot, py::object grad, TensorAbi::HeldTensors* gradients, int64_t* address,
                                 bool* fits) const {
  if (grad.is_none()) return false;
  TensorView tensor;
  *fits = false;
  if (shards_->is_shard(grad.ptr())) {
    slot.grad = abi_->trail(abi_->handle(grad.ptr()));
    PyObject *local = shards_->local(grad.ptr()), *spec = shards_->spec(grad.ptr());
    if (local && spec) {
      if (spec != slot.spec.ptr() && shards_->same_layout(spec, slot.spec.ptr())) {
        slot.spec = py::reinterpret_borrow<py::object>(spec);
      }
      *fits = spec == slot.spec.ptr() && is_readable(slot, local, &tensor);
    }
  }
  gradients->add(std::move(grad));
  *address = tensor.address;
  return true;
}

bool Reader::is_readable(const Slot& slot, PyObject* tensor, TensorView* view) const {
  if (!slot.readable || !abi_->look(tensor, view) || !fits(slot, *view)) return false;
  if (slot.numel != 1) return true;
  // A lazily negated view does not fit. Autograd makes one for conj().imag, whose strides differ from the parameter's
  // unless it has one element. Those of torch._neg_view(), or with the parameter's strides by as_strided(), go
  // unseen.
  const auto negative = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor, is_neg_.ptr()));
  if (!negative) throw py::error_already_set();
  return negative.ptr() != Py_True;
}

bool Reader::fits(const Slot& slot, const TensorView& tensor) const {
  if (tensor.ndim != slot.ndim || tensor.dtype != slot.dtype || !same_device(tensor, first_)) return false;
  // a wrapper without memory of its own looks like a tensor at address 0
  if (slot.numel && !tensor.address) return false;
  const int64_t *shape = shapes_.data() + slot.dims, *strides = strides_.data() + slot.dims;
  for (int64_t d = 0; d < slot.ndim; ++d) {
    if (tensor.shape[d] != shape[d]) return false;
    if (tensor.strides[d] != strides[d] && shape[d] > 1) return false;
  }
  return true;
}

void Reader::look_ahead(int64_t i, int64_t last) const {
  if (i + 12 < last) abi_->prefetch_object(slots_[i + 12].local);
  if (i + 8 < last) {
    abi_->prefetch_implementation(slots_[i + 8].local);
    slots_[i + 8].grad.prefetch();
  }
  if (i + 4 < last) abi_->prefetch_storage(slots_[i + 4].local);
}

// From an owner to the memory of its gradient's shard are five steps, each to memory that the one before names.
void Reader::look_ahead(int64_t i, int64_t first, int64_t last, py::object* grads) const {
  const auto is_shard = [&](int64_t j) { return first <= j && j < last && slots_[j].spec; };
  const auto shard = [&](int64_t j) -> PyObject* {
    PyObject* grad = is_shard(j) ? grads[j].ptr() : nullptr;
    return grad && shards_->is_shard(grad) ? shards_->local(grad) : nullptr;
  };
  if (is_shard(i + 28)) abi_->prefetch_object(slots_[i + 28].owner);
  if (is_shard(i + 24)) {
    abi_->prefetch_implementation(slots_[i + 24].owner);
    slots_[i + 24].grad.prefetch();
  }
  if (is_shard(i + 20)) {
    grads[i + 20] = abi_->grad_object(slots_[i + 20].owner);
    abi_->prefetch_object(grads[i + 20].ptr());
  }
  if (PyObject* local = shard(i + 15)) abi_->prefetch_object(local);
  if (PyObject* local = shard(i + 10); local && abi_->is_common(local)) abi_->prefetch_implementation(local);
}

py::tuple Reader::read(int64_t first, int64_t last) {
  if (first < 0 || last > static_cast<int64_t>(slots_.size())) throw py::index_error("no such slots");
  auto gradients = std::make_unique<TensorAbi::HeldTensors>(abi_);
  gradients->reserve(last - first);
  std::vector<py::object> of_shards(shards_ ? last - first : 0);
  py::object* grads = of_shards.data() - (shards_ ? first : 0);
  // the first ones, which no slot before them looks ahead to
  for (int64_t i = first - 28; shards_ && i < first; ++i) look_ahead(i, first, last, grads);
  py::list moved, mismatched;
  for (int64_t i = first; i < last; ++i) {
    look_ahead(i, last);
    if (shards_) look_ahead(i, first, last, grads);
    Slot& slot = slots_[i];
    Record& record = records_[i];
    TensorView tensor;
    if (!slot.readable || !keeps_shard(slot) || !abi_->look(slot.local, &tensor) || tensor.address != record.param ||
        !fits(slot, tensor)) {
      moved.append(i);
    }
    int64_t address = 0;
    bool fits = true;
    const bool present = slot.spec ? read_shard_gradient(slot, std::move(grads[i]), gradients.get(), &address, &fits)
                                   : read_gradient(slot, gradients.get(), &address, &fits);
    if (present != static_cast<bool>(active_[i])) {
      active_[i] = present;
      switched_ = true;
    }
    if (!fits) {
      mismatched.append(i);
    } else if (address != record.grad || (present && record.grad_dtype != slot.grad_dtype)) {
      record.grad = address;
      record.grad_dtype = slot.grad_dtype;
      changed_ = true;
    }
  }
  return py::make_tuple(std::move(moved), std::move(mismatched), std::exchange(changed_, false),
                        std::exchange(switched_, false), std::move(gradients));
}

int Reader::traverse(visitproc visit, void* arg) const {
  Py_VISIT(owners_.ptr());
  Py_VISIT(locals_.ptr());
  return 0;
}

void Reader::clear() {
  slots_.clear();
  owners_ = py::list();
  locals_ = py::list();
}

}  // namespace sf
