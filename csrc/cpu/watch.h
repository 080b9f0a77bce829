// Notices that somebody replaced what a dict or a list holds, object by object and without comparing any.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace sf {

// stackelberg_fused/watch.py has the same class in Python.
class Watch {
 public:
  // `containers` are dicts and lists; what they hold is noted as it is now.
  explicit Watch(const pybind11::list& containers);

  // The containers that hold other objects than were noted, or in another order; dicts also other keys.
  pybind11::list changed() const;

  void note(size_t index);

  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  bool same(PyObject* container, const std::vector<pybind11::object>& noted) const;

  std::vector<pybind11::object> containers_;
  std::vector<std::vector<pybind11::object>> noted_;
};

}  // namespace sf
