// libtorch's functions that native code reads tensors by, each of which can be told to be wrong. Everything goes on to
// the real ones, in the file TORCH. A test loads it and hands it to TensorAbi in the place of libtorch.
#include <dlfcn.h>

#include <cstdint>
#include <cstring>

namespace {

template <typename Function>
Function real(const char* name) {
  static void* torch = dlopen(TORCH, RTLD_LAZY | RTLD_NOLOAD);
  return reinterpret_cast<Function>(dlsym(torch, name));
}

bool is(const char* name);

}  // namespace

#define NUMBER(name, T, wrong_value)                                               \
  int32_t name(const void* tensor, T* out) {                                       \
    const int32_t failed = real<int32_t (*)(const void*, T*)>(#name)(tensor, out); \
    if (!failed && is(#name)) *out = wrong_value;                                  \
    return failed;                                                                 \
  }

extern "C" {

char wrong[64] = "";  // the function that is

int32_t aoti_torch_layout_strided() {
  return real<int32_t (*)()>("aoti_torch_layout_strided")() + is("aoti_torch_layout_strided");
}

NUMBER(aoti_torch_get_data_ptr, char*, *out + 2)
NUMBER(aoti_torch_get_dim, int64_t, *out - (*out > 0))
NUMBER(aoti_torch_get_dtype, int32_t, 6)
NUMBER(aoti_torch_get_device_type, int32_t, 0)
NUMBER(aoti_torch_get_device_index, int32_t, 0)
NUMBER(aoti_torch_get_layout, int32_t, 0)

int32_t aoti_torch_get_strides(const void* tensor, int64_t** out) {
  return real<int32_t (*)(const void*, int64_t**)>(
      is("aoti_torch_get_strides") ? "aoti_torch_get_sizes" : "aoti_torch_get_strides")(tensor, out);
}
int32_t aoti_torch_get_sizes(const void* tensor, int64_t** out) {
  return real<int32_t (*)(const void*, int64_t**)>(is("aoti_torch_get_sizes") ? "aoti_torch_get_strides"
                                                                              : "aoti_torch_get_sizes")(tensor, out);
}

// wrong: keeps nothing
int32_t aoti_torch_new_tensor_handle(const void* tensor, void** out) {
  if (is("aoti_torch_new_tensor_handle")) return real<int32_t (*)(void**)>("aoti_torch_new_uninitialized_tensor")(out);
  return real<int32_t (*)(const void*, void**)>("aoti_torch_new_tensor_handle")(tensor, out);
}
int32_t aoti_torch_delete_tensor_object(void* tensor) {
  return real<int32_t (*)(void*)>("aoti_torch_delete_tensor_object")(tensor);
}
// wrong: assigns nothing
int32_t aoti_torch_assign_tensors(const void* from, void* to) {
  if (is("aoti_torch_assign_tensors")) return 0;
  return real<int32_t (*)(const void*, void*)>("aoti_torch_assign_tensors")(from, to);
}

// wrong: does it twice
void _ZN5torch8autograd4impl12bump_versionERKN2at6TensorE(const void* tensor) {
  const auto bump = real<void (*)(const void*)>("_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE");
  bump(tensor);
  if (is("bump_version")) bump(tensor);
}

#ifdef BY_VALUE
// as at::Tensor is: returned in memory that the caller provides, at the address in the first argument
struct Tensor {
  const void* implementation;
  ~Tensor() {}
};
Tensor _ZNK3c1010TensorImpl4gradEv(const void* implementation) {
  const auto grad = real<const void* const* (*)(const void*)>("_ZNK3c1010TensorImpl4gradEv");
  return Tensor{*grad(implementation)};
}
#else
// wrong: what the first one had, which is none, for all
const void* _ZNK3c1010TensorImpl4gradEv(const void* implementation) {
  static const void* first = nullptr;  // an at::Tensor is such a pointer
  const void* found = real<const void* (*)(const void*)>("_ZNK3c1010TensorImpl4gradEv")(implementation);
  if (!first) first = *static_cast<const void* const*>(found);
  return is("grad") ? &first : found;
}
#endif

}  // extern "C"

namespace {

bool is(const char* name) { return !std::strcmp(wrong, name); }

}  // namespace
