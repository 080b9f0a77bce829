// Runs at every step. Before Python 3.13 a dict has a version, which saves the look at its entries.
#include "cpu/container_snapshot.h"

#include <limits>
#include <stdexcept>

namespace py = pybind11;

namespace sf {
namespace {

// A number that changes whenever the dict does; 0 where Python has none.
uint64_t version_of(PyObject* dict) {
#if PY_VERSION_HEX < 0x030D0000
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"  // since 3.12, without a replacement for many dicts
  return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
#pragma GCC diagnostic pop
#else
  (void)dict;
  return 0;
#endif
}

}  // namespace

ContainerSnapshot::ContainerSnapshot(const py::list& containers, int64_t rates, int64_t stride)
    : rates_(rates), stride_(stride), noted_(py::len(containers)), versions_(py::len(containers)) {
  PyUnicode_InternInPlace(&lr_.ptr());
  for (py::handle container : containers) {
    if (!PyDict_Check(container.ptr()) && !PyList_Check(container.ptr())) {
      throw py::type_error("a snapshot is of dicts and lists");
    }
    containers_.push_back(py::reinterpret_borrow<py::object>(container));
  }
  for (size_t i = 0; i < containers_.size(); ++i) note(i);
}

void ContainerSnapshot::note(size_t index) {
  if (index >= containers_.size()) throw py::index_error("no such container");
  std::vector<py::object> now;
  PyObject* container = containers_[index].ptr();
  if (PyDict_Check(container)) {
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(container, &at, &key, &value);) {
      now.push_back(py::reinterpret_borrow<py::object>(key));
      now.push_back(py::reinterpret_borrow<py::object>(value));
    }
  } else {
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(container); ++i) {
      now.push_back(py::reinterpret_borrow<py::object>(PyList_GET_ITEM(container, i)));
    }
  }
  versions_[index] = 0;
  noted_[index].swap(now);  // releases the old objects last: their destructors may call back into this snapshot
}

bool ContainerSnapshot::is_new_rate(PyObject* key, PyObject* value) const {
  // an equal key that is another object counts as changed, which costs time but is correct
  if (!rates_ || key != lr_.ptr() || !PyFloat_CheckExact(value)) return false;
  const double rate = PyFloat_AS_DOUBLE(value);
  return rate >= 0.0 && rate <= std::numeric_limits<float>::max();
}

bool ContainerSnapshot::same_dict(PyObject* dict, size_t index) {
  const std::vector<py::object>& noted = noted_[index];
  if (static_cast<size_t>(PyDict_GET_SIZE(dict)) * 2 != noted.size()) return false;
  PyObject *key, *value, *rate = nullptr;
  size_t i = 0, rate_at = 0;
  for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value); i += 2) {
    if (key != noted[i].ptr()) return false;
    if (value == noted[i + 1].ptr()) continue;
    if (!is_new_rate(key, value)) return false;
    rate = value;
    rate_at = i + 1;
  }
  if (rate) {
    *reinterpret_cast<double*>(rates_ + static_cast<int64_t>(index) * stride_) = PyFloat_AS_DOUBLE(rate);
    took_over_ = true;
    auto before = py::reinterpret_borrow<py::object>(rate);
    std::swap(noted_[index][rate_at], before);  // releases the old rate last, as in note()
  }
  return true;
}

bool ContainerSnapshot::same(size_t index) {
  PyObject* container = containers_[index].ptr();
  if (PyDict_Check(container)) {
    const uint64_t version = version_of(container);
    if (version && version == versions_[index]) return true;
    if (!same_dict(container, index)) return false;
    versions_[index] = version;
    return true;
  }
  const std::vector<py::object>& noted = noted_[index];
  if (static_cast<size_t>(PyList_GET_SIZE(container)) != noted.size()) return false;
  for (size_t i = 0; i < noted.size(); ++i) {
    if (PyList_GET_ITEM(container, i) != noted[i].ptr()) return false;
  }
  return true;
}

py::list ContainerSnapshot::changed() {
  py::list found;
  for (size_t i = 0; i < containers_.size(); ++i) {
    if (!same(i)) found.append(i);
  }
  return found;
}

bool ContainerSnapshot::is_unchanged() {
  const size_t count = containers_.size();
  bool unchanged = true;
  for (size_t i = 0; i < count; ++i) {
    if (i + 8 < count) __builtin_prefetch(containers_[i + 8].ptr());
    unchanged &= same(i);  // does not stop early, because each container takes its new rate over
  }
  return unchanged;
}

int ContainerSnapshot::traverse(visitproc visit, void* arg) const {
  for (const py::object& container : containers_) Py_VISIT(container.ptr());
  for (const auto& noted : noted_) {
    for (const py::object& object : noted) Py_VISIT(object.ptr());
  }
  return 0;
}

void ContainerSnapshot::clear() {
  std::vector<py::object> containers;
  std::vector<std::vector<py::object>> noted;
  containers.swap(containers_);
  noted.swap(noted_);
}

}  // namespace sf
