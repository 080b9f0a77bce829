#include "cpu/tensor_abi.h"

#include <dlfcn.h>

#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace sf {
namespace {

// Closed again, for torch stays where it is.
class Libtorch {
 public:
  Libtorch() {
    for (const char* name : {"libtorch_cpu.so", "libtorch_cpu.dylib"}) {
      if ((library_ = dlopen(name, RTLD_LAZY | RTLD_NOLOAD))) return;
    }
    throw std::runtime_error("libtorch_cpu is not loaded");
  }
  ~Libtorch() { dlclose(library_); }
  Libtorch(const Libtorch&) = delete;
  Libtorch& operator=(const Libtorch&) = delete;

  template <typename Function>
  void find(const char* name, Function* out) const {
    *out = reinterpret_cast<Function>(dlsym(library_, name));
    if (!*out) throw std::runtime_error(std::string("this torch has no ") + name);
  }

 private:
  void* library_ = nullptr;
};

// The only word of a tensor's object that holds `impl`.
std::size_t find_offset(py::handle tensor, int64_t impl) {
  std::size_t found = 0;
  const auto size = static_cast<std::size_t>(Py_TYPE(tensor.ptr())->tp_basicsize);
  for (std::size_t at = sizeof(PyObject); at + sizeof(impl) <= size; at += sizeof(impl)) {
    if (std::memcmp(reinterpret_cast<const char*>(tensor.ptr()) + at, &impl, sizeof(impl))) continue;
    if (found) throw std::runtime_error("a tensor's object holds its implementation twice");
    found = at;
  }
  if (!found) throw std::runtime_error("a tensor's object does not hold its implementation");
  return found;
}

}  // namespace

TensorAbi::TensorAbi(py::tuple types, py::object no_dispatch, py::handle probe, int64_t impl, int64_t address)
    : types_(std::move(types)), no_dispatch_(std::move(no_dispatch)), offset_(find_offset(probe, impl)) {
  PyUnicode_InternInPlace(&dispatch_name_.ptr());
  const Libtorch torch;
  int32_t (*strided)();
  torch.find("aoti_torch_layout_strided", &strided);
  strided_ = strided();
  torch.find("aoti_torch_get_data_ptr", &data_ptr_);
  torch.find("aoti_torch_get_dim", &dim_);
  torch.find("aoti_torch_get_sizes", &sizes_);
  torch.find("aoti_torch_get_strides", &strides_);
  torch.find("aoti_torch_get_dtype", &dtype_);
  torch.find("aoti_torch_get_device_type", &device_type_);
  torch.find("aoti_torch_get_device_index", &device_index_);
  torch.find("aoti_torch_get_layout", &layout_);
  torch.find("aoti_torch_new_tensor_handle", &new_handle_);
  torch.find("aoti_torch_delete_tensor_object", &delete_handle_);
  torch.find("aoti_torch_assign_tensors", &assign_);
  // void torch::autograd::impl::bump_version(const at::Tensor&)
  torch.find("_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE", &bump_version_);
  // const at::Tensor& c10::TensorImpl::grad() const
  torch.find("_ZNK3c1010TensorImpl4gradEv", &grad_);
  undefined_ = *static_cast<const void* const*>(grad_(implementation(probe.ptr())));
  TensorView view;
  const bool right = look(probe.ptr(), &view) && view.address == address && view.ndim == 2 && view.shape[0] == 2 &&
                     view.shape[1] == 3 && view.strides[0] == 1 && view.strides[1] == 2;
  if (!right) throw std::runtime_error("this torch's tensors are not what they are expected to be");
}

bool TensorAbi::is_common(PyObject* object) const {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(types_.ptr()); ++i) {
    if (reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(types_.ptr(), i)) == Py_TYPE(object)) return true;
  }
  return false;
}

bool TensorAbi::is_plain(PyObject* object) const {
  if (is_common(object)) return true;
  PyTypeObject* type = Py_TYPE(object);
  if (!PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(types_.ptr(), 0)))) return false;
  const auto dispatch =
      py::reinterpret_steal<py::object>(PyObject_GetAttr(reinterpret_cast<PyObject*>(type), dispatch_name_.ptr()));
  if (!dispatch) PyErr_Clear();
  return dispatch.is(no_dispatch_);
}

bool TensorAbi::address(const void* tensor, int64_t* out) const {
  void* data;
  if (data_ptr_(tensor, &data)) return false;
  *out = reinterpret_cast<int64_t>(data);
  return true;
}

bool TensorAbi::look_inside(const void* tensor, TensorView* out) const {
  int64_t *shape, *strides;
  if (!address(tensor, &out->address) || dim_(tensor, &out->ndim) || sizes_(tensor, &shape) ||
      strides_(tensor, &strides) || dtype_(tensor, &out->dtype) || device_type_(tensor, &out->device_type) ||
      device_index_(tensor, &out->device_index)) {
    return false;
  }
  out->shape = shape;
  out->strides = strides;
  return true;
}

const void* TensorAbi::grad(PyObject* object) const {
  const void* found = grad_(implementation(object));
  return *static_cast<const void* const*>(found) == undefined_ ? nullptr : found;
}

void TensorAbi::Kept::add(const void* tensor) {
  void* handle;
  if (!abi_->spare_.empty()) {
    handle = abi_->spare_.back();
    if (abi_->assign_(tensor, handle)) throw std::bad_alloc();
    abi_->spare_.pop_back();
  } else if (abi_->new_handle_(tensor, &handle)) {
    throw std::bad_alloc();
  }
  handles_.push_back(handle);
}

TensorAbi::Kept::~Kept() {
  for (void* handle : handles_) abi_->assign_(&abi_->undefined_, handle);
  abi_->spare_.insert(abi_->spare_.end(), handles_.begin(), handles_.end());
}

TensorAbi::~TensorAbi() {
  for (void* handle : spare_) delete_handle_(handle);
}

void TensorAbi::increment_versions(const py::list& tensors) const {
  for (py::handle tensor : tensors) {
    try {
      bump_version_(handle(tensor.ptr()));
    } catch (const std::exception&) {
      // one made in inference mode, which has no version: torch's own function skips it too
    }
  }
}

}  // namespace sf
