// Tensors, read without a Python call and without a header of torch: by functions of libtorch that are looked up in the
// running process. Those named aoti_torch_* are a C interface that torch keeps stable for models compiled ahead of time
// (torch/csrc/inductor/aoti_torch/c/shim.h). Four things are not stable: the three C++ functions below, of whose
// mangled names the return type is no part, and where a Python object keeps its tensor. So a torch has to be probed
// before it is trusted: stackelberg_fused/native/tensor_abi.py says when and how.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace sf {

struct TensorView {
  int64_t address;
  int64_t ndim;
  const int64_t* shape;    // these two belong to the tensor
  const int64_t* strides;  // in elements
  int32_t dtype, device_type, device_index;
};

// What is called of libtorch. Finding it calls nothing; throws std::runtime_error where libtorch is not loaded or lacks
// a function.
struct TorchFunctions {
  // `library` is a file that is loaded already, libtorch_cpu where it is empty.
  explicit TorchFunctions(const std::string& library);

  template <typename T>
  using Getter = int32_t (*)(const void* tensor, T* out);

  int32_t (*layout_strided)();
  Getter<void*> data_ptr;
  Getter<int64_t> dim;
  Getter<int64_t*> sizes, strides;
  Getter<int32_t> dtype, device_type, device_index, layout;
  int32_t (*new_handle)(const void* tensor, void** out);
  int32_t (*delete_handle)(void* tensor);
  int32_t (*assign)(const void* from, void* to);
  // The three that are exported, but not stable:
  // void torch::autograd::impl::bump_version(const at::Tensor&)
  void (*bump_version)(const void* tensor);
  // const at::Tensor& c10::TensorImpl::grad() const
  const void* (*grad)(const void* implementation);
  // PyObject* THPVariable_Wrap(const at::TensorBase&), of libtorch_python; null where that has none, or is not loaded.
  PyObject* (*wrap)(const void* tensor) = nullptr;

  std::string path;  // where the library lies
};

class TensorAbi {
 public:
  // `types` are those of most tensors, and `no_dispatch` is the `__torch_dispatch__` of a type without any. `probe` is
  // a tensor of shape (2, 3) with strides (1, 2) and without a gradient, to be found at `impl` with its data at
  // `address`; `library` is as above.
  // Throws std::runtime_error where this torch lacks a function, or is not laid out as expected. Where its functions
  // are others under the same names, anything may happen.
  TensorAbi(pybind11::tuple types, pybind11::object no_dispatch, pybind11::handle probe, int64_t impl, int64_t address,
            const std::string& library);
  ~TensorAbi();
  TensorAbi(const TensorAbi&) = delete;
  TensorAbi& operator=(const TensorAbi&) = delete;

  // Where an object keeps its tensor: what shim.h calls a handle, an at::Tensor*.
  void* handle(PyObject* object) const { return reinterpret_cast<char*>(object) + offset_; }

  // False for what is not strided, or has no memory to speak of: wrappers with a `__torch_dispatch__`.
  bool look(PyObject* object, TensorView* out) const { return is_plain(object) && look_inside(handle(object), out); }
  bool look_at_address(PyObject* object, int64_t* out) const {
    return is_plain(object) && address(handle(object), out);
  }
  // The same of a handle, which does not tell wrappers: they look like tensors at address 0. Sparse ones are expected
  // here: asked for its address, one prints a message before it fails.
  bool look_at(const void* tensor, TensorView* out) const {
    int32_t layout;
    return !torch_.layout(tensor, &layout) && layout == strided_ && look_inside(tensor, out);
  }

  // Whether nothing but torch's own code stands between an object and its `.grad`; modes that intercept it
  // (`TorchFunctionMode`) are not asked.
  bool is_common(PyObject* object) const;
  // What `.grad` of such an object is: a handle that is valid until `.grad` is set, or null. Not wrapped in a Python
  // object, which is most of what asking Python costs.
  const void* grad(PyObject* object) const;
  // The same as an object, None without a gradient: of a DTensor, whose shard only its object knows.
  pybind11::object grad_object(PyObject* object) const;

  // Tensors that stay alive as long as this does.
  class HeldTensors {
   public:
    explicit HeldTensors(std::shared_ptr<const TensorAbi> abi) : abi_(std::move(abi)) {}
    ~HeldTensors();
    HeldTensors(const HeldTensors&) = delete;
    HeldTensors& operator=(const HeldTensors&) = delete;
    void reserve(std::size_t count) { handles_.reserve(count); }
    void add(const void* tensor);
    void add(pybind11::object object) { objects_.push_back(std::move(object)); }

   private:
    std::shared_ptr<const TensorAbi> abi_;
    std::vector<void*> handles_;
    std::vector<pybind11::object> objects_;
  };

  // What looking at a tensor will wait for: its object, then its implementation, then its storage and its gradient's
  // place. These are hints and cost next to nothing if wrong: of the last two it is only assumed where they are noted.
  void prefetch_object(PyObject* object) const { __builtin_prefetch(handle(object)); }
  void prefetch_implementation(PyObject* object) const { Trail{implementation(object), nullptr}.prefetch(); }
  void prefetch_storage(PyObject* object) const {
    __builtin_prefetch(implementation(object)[2]);
    __builtin_prefetch(implementation(object)[3]);
  }
  // Where a tensor was that may be gone by now: nothing to go after, only to ask for.
  struct Trail {
    const void* implementation = nullptr;
    const void* storage = nullptr;

    void prefetch() const {
      for (int line = 0; line < 3; ++line) __builtin_prefetch(static_cast<const char*>(implementation) + 64 * line);
      if (storage) __builtin_prefetch(storage);
    }
  };
  Trail trail(const void* tensor) const {
    void* const* found = *static_cast<void* const* const*>(tensor);
    return {found, found[2]};
  }

  // As torch.autograd.graph.increment_version, of tensors only.
  void increment_versions(const pybind11::list& tensors) const;

  // For a probe to compare with what Python says; tuples (implementation, address, shape, strides, dtype, device type,
  // device index), of which the last three are libtorch's numbers.
  // What look() sees, or None.
  pybind11::object describe(pybind11::handle tensor) const;
  // What grad() and look_at() see: None without a gradient; where look_at() sees nothing, its implementation and
  // whether it is strided.
  pybind11::object describe_gradient(pybind11::handle tensor) const;
  // What grad_object() returns.
  pybind11::object gradient_object(pybind11::handle tensor) const { return grad_object(tensor.ptr()); }
  // Of tensors that have one each.
  static std::unique_ptr<HeldTensors> keep_gradients(std::shared_ptr<const TensorAbi> abi,
                                                     const pybind11::list& tensors);

 private:
  void* const* implementation(PyObject* object) const { return *static_cast<void***>(handle(object)); }
  bool is_plain(PyObject* object) const;
  bool address(const void* tensor, int64_t* out) const;
  bool look_inside(const void* tensor, TensorView* out) const;

  TorchFunctions torch_;
  pybind11::tuple types_;
  pybind11::object no_dispatch_;
  pybind11::str dispatch_name_{"__torch_dispatch__"}, grad_name_{"grad"};
  std::size_t offset_ = 0;
  int32_t strided_ = 0;
  const void* undefined_ = nullptr;   // the implementation of all tensors that are none
  mutable std::vector<void*> spare_;  // handles of none: assigning takes less time than making new ones
};

}  // namespace sf
