#include "cpu/shards.h"

#include <structmember.h>

#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace sf {
namespace {

// Where objects of a type keep what `__slots__` names so.
Py_ssize_t offset_of_slot(const py::type& type, const char* name) {
  const auto found = py::reinterpret_steal<py::object>(PyObject_GetAttrString(type.ptr(), name));
  if (!found) PyErr_Clear();
  if (found && Py_TYPE(found.ptr()) == &PyMemberDescr_Type) {
    const PyMemberDef& member = *reinterpret_cast<PyMemberDescrObject*>(found.ptr())->d_member;
    if (member.type == T_OBJECT_EX) return member.offset;
  }
  throw std::runtime_error(std::string("this torch's DTensor has no slot ") + name);
}

bool same_attribute(PyObject* a, PyObject* b, PyObject* name) {
  const auto of_a = py::reinterpret_steal<py::object>(PyObject_GetAttr(a, name));
  const auto of_b = py::reinterpret_steal<py::object>(of_a ? PyObject_GetAttr(b, name) : nullptr);
  const int same = of_b ? PyObject_RichCompareBool(of_a.ptr(), of_b.ptr(), Py_EQ) : -1;
  if (same < 0) throw py::error_already_set();
  return same;
}

}  // namespace

ShardReader::ShardReader(py::type type)
    : type_(std::move(type)), local_(offset_of_slot(type_, "_local_tensor")), spec_(offset_of_slot(type_, "_spec")) {
  PyUnicode_InternInPlace(&mesh_name_.ptr());
  PyUnicode_InternInPlace(&placements_name_.ptr());
}

bool ShardReader::same_layout(PyObject* spec, PyObject* other) const {
  return same_attribute(spec, other, placements_name_.ptr()) && same_attribute(spec, other, mesh_name_.ptr());
}

}  // namespace sf
