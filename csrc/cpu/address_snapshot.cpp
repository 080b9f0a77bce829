// moved() runs at every step and waits mostly for memory, so it prefetches the objects that it will read some tensors
// later.
#include "cpu/address_snapshot.h"

#include <cstddef>
#include <utility>

namespace py = pybind11;

namespace sf {

AddressSnapshot::AddressSnapshot(const py::list& tensors, std::shared_ptr<const TensorAbi> abi)
    : abi_(std::move(abi)), tensors_(py::reinterpret_steal<py::list>(PySequence_List(tensors.ptr()))) {
  for (py::handle object : tensors_) {
    int64_t address;
    if (!abi_->look_at_address(object.ptr(), &address))
      throw py::type_error("an address snapshot is of strided tensors");
    addresses_.push_back(address);
  }
}

bool AddressSnapshot::moved() const {
  const std::size_t count = addresses_.size();
  const auto at = [this](std::size_t i) { return PyList_GET_ITEM(tensors_.ptr(), i); };
  for (std::size_t i = 0; i < count; ++i) {
    if (i + 16 < count) abi_->prefetch_object(at(i + 16));
    if (i + 8 < count) abi_->prefetch_implementation(at(i + 8));
    if (i + 4 < count) abi_->prefetch_storage(at(i + 4));
    int64_t address;
    if (!abi_->look_at_address(at(i), &address) || address != addresses_[i]) return true;
  }
  return false;
}

int AddressSnapshot::traverse(visitproc visit, void* arg) const {
  Py_VISIT(tensors_.ptr());
  return 0;
}

void AddressSnapshot::clear() {
  addresses_.clear();
  tensors_ = py::list();
}

}  // namespace sf
