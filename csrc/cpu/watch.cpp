#include "cpu/watch.h"

#include <stdexcept>

namespace py = pybind11;

namespace sf {

Watch::Watch(const py::list& containers) : noted_(py::len(containers)) {
  for (py::handle container : containers) {
    if (!PyDict_Check(container.ptr()) && !PyList_Check(container.ptr())) {
      throw py::type_error("a watch is over dicts and lists");
    }
    containers_.push_back(py::reinterpret_borrow<py::object>(container));
  }
  for (size_t i = 0; i < containers_.size(); ++i) note(i);
}

void Watch::note(size_t index) {
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
  noted_[index].swap(now);  // what was noted before is released when nothing here is in between
}

bool Watch::same(PyObject* container, const std::vector<py::object>& noted) const {
  const py::object* next = noted.data();
  if (PyDict_Check(container)) {
    if (static_cast<size_t>(PyDict_GET_SIZE(container)) * 2 != noted.size()) return false;
    PyObject *key, *value;
    for (Py_ssize_t at = 0; PyDict_Next(container, &at, &key, &value); next += 2) {
      if (key != next[0].ptr() || value != next[1].ptr()) return false;
    }
    return true;
  }
  if (static_cast<size_t>(PyList_GET_SIZE(container)) != noted.size()) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(container); ++i, ++next) {
    if (PyList_GET_ITEM(container, i) != next->ptr()) return false;
  }
  return true;
}

py::list Watch::changed() const {
  py::list found;
  for (size_t i = 0; i < containers_.size(); ++i) {
    if (!same(containers_[i].ptr(), noted_[i])) found.append(i);
  }
  return found;
}

int Watch::traverse(visitproc visit, void* arg) const {
  for (const py::object& container : containers_) Py_VISIT(container.ptr());
  for (const auto& noted : noted_) {
    for (const py::object& object : noted) Py_VISIT(object.ptr());
  }
  return 0;
}

void Watch::clear() {
  std::vector<py::object> containers;
  std::vector<std::vector<py::object>> noted;
  containers.swap(containers_);
  noted.swap(noted_);
}

}  // namespace sf
