#include "cpu/reader.h"

#include <cstring>
#include <stdexcept>

namespace py = pybind11;

namespace sf {
namespace {

template <typename T>
bool same(const T& a, const T& b) {
  return !std::memcmp(&a, &b, sizeof(T));
}

int64_t address(const dlpack::Tensor& tensor) { return reinterpret_cast<int64_t>(tensor.data) + tensor.byte_offset; }

const dlpack::Exchange* open(const py::capsule& capsule) {
  const auto* header =
      static_cast<const dlpack::ExchangeHeader*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
  if (!header) throw py::error_already_set();
  while (header && header->major != dlpack::kMajorVersion) header = header->previous;
  const auto* exchange = reinterpret_cast<const dlpack::Exchange*>(header);
  if (!exchange || !exchange->tensor_from_py_object_no_sync) {
    throw std::runtime_error("this DLPack exchange API cannot lend tensors");
  }
  return exchange;
}

py::list copied(const py::list& list) {
  return py::reinterpret_steal<py::list>(PyList_GetSlice(list.ptr(), 0, PyList_GET_SIZE(list.ptr())));
}

}  // namespace

Reader::Reader(const py::list& owners, const py::list& locals, int64_t records, int64_t active,
               const py::capsule& exchange)
    : exchange_(open(exchange)),
      owners_(copied(owners)),
      locals_(copied(locals)),
      records_(reinterpret_cast<Record*>(records)),
      active_(reinterpret_cast<uint8_t*>(active)) {
  PyUnicode_InternInPlace(&grad_.ptr());
  PyUnicode_InternInPlace(&is_neg_.ptr());
  if (py::len(owners_) != py::len(locals_)) throw py::value_error("as many local tensors as owners are needed");
  for (size_t i = 0; i < py::len(owners_); ++i) {
    Slot slot{
        PyList_GET_ITEM(owners_.ptr(), i), PyList_GET_ITEM(locals_.ptr(), i), nullptr, 1, 0, false, shapes_.size()};
    // a type's own getter, without the search through instance and bases; a type that overrides `grad` is asked
    py::object attribute = py::type::of(owners_[i]).attr(grad_);
    if (Py_IS_TYPE(attribute.ptr(), &PyGetSetDescr_Type)) {
      slot.get_grad = attribute.ptr();
      getters_.append(std::move(attribute));
    }
    dlpack::Tensor tensor;
    if (slot.owner == slot.local && look(slot.local, &tensor)) {
      if (slots_.empty()) device_ = tensor.device, dtype_ = tensor.dtype;
      slot.readable = same(tensor.device, device_) && same(tensor.dtype, dtype_);
      slot.ndim = tensor.ndim;
      for (int32_t d = 0; d < tensor.ndim; ++d) {
        slot.numel *= tensor.shape[d];
        shapes_.push_back(tensor.shape[d]);
        strides_.push_back(tensor.strides[d]);
      }
    }
    slots_.push_back(slot);
  }
}

bool Reader::look(PyObject* object, dlpack::Tensor* out) const {
  if (exchange_->tensor_from_py_object_no_sync(object, out) == 0) return out->strides || !out->ndim;
  PyErr_Clear();  // sparse, on no device, ...: for the caller to say
  return false;
}

py::object Reader::gradient(const Slot& slot) const {
  PyObject* grad = slot.get_grad ? Py_TYPE(slot.get_grad)->tp_descr_get(slot.get_grad, slot.owner, nullptr)
                                 : PyObject_GetAttr(slot.owner, grad_.ptr());
  if (!grad) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(grad);
}

bool Reader::fits(const Slot& slot, const dlpack::Tensor& tensor) const {
  if (tensor.ndim != slot.ndim || !same(tensor.device, device_) || !same(tensor.dtype, dtype_)) return false;
  const int64_t *shape = shapes_.data() + slot.dims, *strides = strides_.data() + slot.dims;
  for (int32_t d = 0; d < slot.ndim; ++d) {
    if (tensor.shape[d] != shape[d]) return false;
    if (tensor.strides[d] != strides[d] && shape[d] > 1) return false;
  }
  return true;
}

py::tuple Reader::read(int64_t first, int64_t last) {
  if (first < 0 || last > static_cast<int64_t>(slots_.size())) throw py::index_error("no such slots");
  py::list moved, odd, grads;
  for (int64_t i = first; i < last; ++i) {
    const Slot& slot = slots_[i];
    Record& record = records_[i];
    dlpack::Tensor tensor;
    // a wrapper without memory of its own looks like a tensor at address 0
    if (!slot.readable || !look(slot.local, &tensor) || address(tensor) != record.param || !fits(slot, tensor) ||
        (slot.numel && !tensor.data)) {
      moved.append(i);
    }
    const py::object grad = gradient(slot);
    const bool present = !grad.is_none();
    if (present != static_cast<bool>(active_[i])) {
      active_[i] = present;
      switched_ = true;
    }
    int64_t grad_address = 0;
    if (present) {
      grads.append(grad);  // whatever becomes of .grad, its memory has to last until the launch is over
      if (!slot.readable || !look(grad.ptr(), &tensor) || !fits(slot, tensor) || (slot.numel && !tensor.data)) {
        odd.append(i);
        continue;
      }
      // What autograd makes of conj().imag, a view that negates what it shows, has other strides unless it has one
      // element. Not seen: torch._neg_view(), and as_strided() of such a view with the parameter's strides.
      if (slot.numel == 1) {
        const auto negative = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(grad.ptr(), is_neg_.ptr()));
        if (!negative) throw py::error_already_set();
        if (negative.ptr() == Py_True) {
          odd.append(i);
          continue;
        }
      }
      grad_address = address(tensor);
    }
    if (grad_address != record.grad) {
      record.grad = grad_address;
      changed_ = true;
    }
  }
  return py::make_tuple(std::move(moved), std::move(odd), std::exchange(changed_, false),
                        std::exchange(switched_, false), std::move(grads));
}

int Reader::traverse(visitproc visit, void* arg) const {
  Py_VISIT(owners_.ptr());
  Py_VISIT(locals_.ptr());
  Py_VISIT(getters_.ptr());
  return 0;
}

void Reader::clear() {
  slots_.clear();
  owners_ = py::list();
  locals_ = py::list();
  getters_ = py::list();
}

Places::Places(const py::list& tensors, const py::capsule& exchange)
    : exchange_(open(exchange)), tensors_(copied(tensors)) {
  for (py::handle object : tensors_) {
    dlpack::Tensor tensor;
    if (exchange_->tensor_from_py_object_no_sync(object.ptr(), &tensor)) throw py::error_already_set();
    addresses_.push_back(address(tensor));
  }
}

bool Places::moved() const {
  for (size_t i = 0; i < addresses_.size(); ++i) {
    dlpack::Tensor tensor;
    if (exchange_->tensor_from_py_object_no_sync(PyList_GET_ITEM(tensors_.ptr(), i), &tensor)) {
      PyErr_Clear();  // it can no longer be read at all
      return true;
    }
    if (address(tensor) != addresses_[i]) return true;
  }
  return false;
}

int Places::traverse(visitproc visit, void* arg) const {
  Py_VISIT(tensors_.ptr());
  return 0;
}

void Places::clear() {
  addresses_.clear();
  tensors_ = py::list();
}

}  // namespace sf
