// Notices that somebody replaced what a dict or a list holds, object by object and without comparing any.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace sf {

// stackelberg_fused/native/change_detection.py has the same class in Python.
class ContainerSnapshot {
 public:
  // `containers` are dicts and lists; what they hold is noted as it is now.
  // Where `rates` is not 0, a dict of which "lr" alone was replaced, by another float >= 0 that is finite in single
  // precision, counts as unchanged: the new rate of container i is written, as a double, to the address rates + i *
  // stride.
  explicit ContainerSnapshot(const pybind11::list& containers, int64_t rates = 0, int64_t stride = 0);

  // The containers that hold other objects than were noted, or in another order; dicts also other keys.
  // New rates are taken over on the way.
  pybind11::list changed();

  // Whether that would be none.
  bool is_unchanged();

  void note(size_t index);

  // Whether a rate was written since this was last asked.
  bool took_over() { return std::exchange(took_over_, false); }

  int traverse(visitproc visit, void* arg) const;
  void clear();

 private:
  bool same(size_t index);
  bool same_dict(PyObject* dict, size_t index);
  bool is_new_rate(PyObject* key, PyObject* value) const;

  pybind11::str lr_{"lr"};
  int64_t rates_, stride_;
  bool took_over_ = false;
  std::vector<pybind11::object> containers_;
  std::vector<std::vector<pybind11::object>> noted_;
  std::vector<uint64_t> versions_;  // of dicts, when they were found to hold what was noted
};

}  // namespace sf
