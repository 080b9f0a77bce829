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
class Library {
 public:
  // `name` is a path, or what torch calls a library of its own.
  explicit Library(const std::string& name) {
    for (const char* ending : {"", ".so", ".dylib"}) {
      if ((library_ = dlopen((name + ending).c_str(), RTLD_LAZY | RTLD_NOLOAD))) return;
    }
  }
  ~Library() {
    if (library_) dlclose(library_);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  bool is_loaded() const { return library_; }

  template <typename Function>
  void find(const char* name, Function* out) const {
    *out = find_if_there<Function>(name);
    if (!*out) throw std::runtime_error(std::string("this torch has no ") + name);
  }
  // Null where there is none.
  template <typename Function>
  Function find_if_there(const char* name) const {
    return library_ ? reinterpret_cast<Function>(dlsym(library_, name)) : nullptr;
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

py::tuple as_tuple(const int64_t* numbers, int64_t count) {
  py::tuple out(count);
  for (int64_t i = 0; i < count; ++i) out[i] = numbers[i];
  return out;
}

py::tuple as_tuple(const void* implementation, const TensorView& view) {
  return py::make_tuple(reinterpret_cast<int64_t>(implementation), view.address, as_tuple(view.shape, view.ndim),
                        as_tuple(view.strides, view.ndim), view.dtype, view.device_type, view.device_index);
}

}  // namespace

TorchFunctions::TorchFunctions(const std::string& library) {
  const std::string file = library.empty() ? "libtorch_cpu" : library;
  const Library torch(file);
  if (!torch.is_loaded()) throw std::runtime_error(file + " is not loaded");
  torch.find("aoti_torch_layout_strided", &layout_strided);
  torch.find("aoti_torch_get_data_ptr", &data_ptr);
  torch.find("aoti_torch_get_dim", &dim);
  torch.find("aoti_torch_get_sizes", &sizes);
  torch.find("aoti_torch_get_strides", &strides);
  torch.find("aoti_torch_get_dtype", &dtype);
  torch.find("aoti_torch_get_device_type", &device_type);
  torch.find("aoti_torch_get_device_index", &device_index);
  torch.find("aoti_torch_get_layout", &layout);
  torch.find("aoti_torch_new_tensor_handle", &new_handle);
  torch.find("aoti_torch_delete_tensor_object", &delete_handle);
  torch.find("aoti_torch_assign_tensors", &assign);
  torch.find("_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE", &bump_version);
  torch.find("_ZNK3c1010TensorImpl4gradEv", &grad);
  wrap = Library("libtorch_python").find_if_there<decltype(wrap)>("_Z16THPVariable_WrapRKN2at10TensorBaseE");
  Dl_info found;
  if (dladdr(reinterpret_cast<const void*>(layout_strided), &found) && found.dli_fname) path = found.dli_fname;
}

TensorAbi::TensorAbi(py::tuple types, py::object no_dispatch, py::handle probe, int64_t impl, int64_t address,
                     const std::string& library)
    : torch_(library),
      types_(std::move(types)),
      no_dispatch_(std::move(no_dispatch)),
      offset_(find_offset(probe, impl)) {
  PyUnicode_InternInPlace(&dispatch_name_.ptr());
  PyUnicode_InternInPlace(&grad_name_.ptr());
  strided_ = torch_.layout_strided();
  TensorView view;
  const bool right = look(probe.ptr(), &view) && view.address == address && view.ndim == 2 && view.shape[0] == 2 &&
                     view.shape[1] == 3 && view.strides[0] == 1 && view.strides[1] == 2;
  if (!right) throw std::runtime_error("this torch's tensors are not what they are expected to be");
  // last, for it is the one that may crash
  undefined_ = *static_cast<const void* const*>(torch_.grad(implementation(probe.ptr())));
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
  if (torch_.data_ptr(tensor, &data)) return false;
  *out = reinterpret_cast<int64_t>(data);
  return true;
}

bool TensorAbi::look_inside(const void* tensor, TensorView* out) const {
  int64_t *shape, *strides;
  if (!address(tensor, &out->address) || torch_.dim(tensor, &out->ndim) || torch_.sizes(tensor, &shape) ||
      torch_.strides(tensor, &strides) || torch_.dtype(tensor, &out->dtype) ||
      torch_.device_type(tensor, &out->device_type) || torch_.device_index(tensor, &out->device_index)) {
    return false;
  }
  out->shape = shape;
  out->strides = strides;
  return true;
}

const void* TensorAbi::grad(PyObject* object) const {
  const void* found = torch_.grad(implementation(object));
  return *static_cast<const void* const*>(found) == undefined_ ? nullptr : found;
}

py::object TensorAbi::grad_object(PyObject* object) const {
  const void* found = grad(object);
  if (!found) return py::none();
  // asking Python takes a microsecond where a class may intercept attributes, as DTensor may
  auto grad =
      py::reinterpret_steal<py::object>(torch_.wrap ? torch_.wrap(found) : PyObject_GetAttr(object, grad_name_.ptr()));
  if (!grad) throw py::error_already_set();
  return grad;
}

void TensorAbi::HeldTensors::add(const void* tensor) {
  void* handle;
  if (!abi_->spare_.empty()) {
    handle = abi_->spare_.back();
    if (abi_->torch_.assign(tensor, handle)) throw std::bad_alloc();
    abi_->spare_.pop_back();
  } else if (abi_->torch_.new_handle(tensor, &handle)) {
    throw std::bad_alloc();
  }
  handles_.push_back(handle);
}

TensorAbi::HeldTensors::~HeldTensors() {
  for (void* handle : handles_) abi_->torch_.assign(&abi_->undefined_, handle);
  abi_->spare_.insert(abi_->spare_.end(), handles_.begin(), handles_.end());
}

TensorAbi::~TensorAbi() {
  for (void* handle : spare_) torch_.delete_handle(handle);
}

void TensorAbi::increment_versions(const py::list& tensors) const {
  for (py::handle tensor : tensors) {
    try {
      torch_.bump_version(handle(tensor.ptr()));
    } catch (const std::exception&) {
      // one made in inference mode, which has no version: torch's own function skips it too
    }
  }
}

py::object TensorAbi::describe(py::handle tensor) const {
  TensorView view;
  if (!look(tensor.ptr(), &view)) return py::none();
  return as_tuple(implementation(tensor.ptr()), view);
}

py::object TensorAbi::describe_gradient(py::handle tensor) const {
  const void* found = grad(tensor.ptr());
  if (!found) return py::none();
  const void* implementation = *static_cast<const void* const*>(found);
  TensorView view;
  if (look_at(found, &view)) return as_tuple(implementation, view);
  int32_t layout;
  const bool is_strided = !torch_.layout(found, &layout) && layout == strided_;
  return py::make_tuple(reinterpret_cast<int64_t>(implementation), is_strided);
}

std::unique_ptr<TensorAbi::HeldTensors> TensorAbi::keep_gradients(std::shared_ptr<const TensorAbi> abi,
                                                                  const py::list& tensors) {
  auto kept = std::make_unique<HeldTensors>(abi);
  for (py::handle tensor : tensors) {
    const void* found = abi->grad(tensor.ptr());
    if (!found) throw py::value_error("a tensor has no gradient to keep");
    kept->add(found);
  }
  return kept;
}

}  // namespace sf
