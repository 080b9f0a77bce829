// DTensors, read without a Python call: a DTensor is a Python object that holds its local shard and a description of
// how it is laid out over ranks (its spec), each in a slot of its class.
#pragma once

#include <pybind11/pybind11.h>

namespace sf {

class ShardReader {
 public:
  // `type` is the class DTensor. Throws std::runtime_error where it keeps its shard or its spec in another way.
  explicit ShardReader(pybind11::type type);

  // Of subclasses, which may keep another shard, nothing is known.
  bool is_shard(PyObject* object) const { return reinterpret_cast<PyObject*>(Py_TYPE(object)) == type_.ptr(); }

  // Borrowed; null where the slot is empty.
  PyObject* local(PyObject* shard) const { return at(shard, local_); }
  PyObject* spec(PyObject* shard) const { return at(shard, spec_); }

  // Whether two specs lay a tensor out alike: on the same mesh with the same placements. May run Python code; throws
  // what that raises.
  bool same_layout(PyObject* spec, PyObject* other) const;

 private:
  static PyObject* at(PyObject* object, Py_ssize_t offset) {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
  }

  pybind11::type type_;
  Py_ssize_t local_, spec_;
  pybind11::str mesh_name_{"mesh"}, placements_name_{"placements"};
};

}  // namespace sf
