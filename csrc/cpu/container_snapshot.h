// Notices that an entry of a dict or a list was replaced by another object. Objects are compared by identity, so that
// nothing of theirs is called.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace sf {

// stackelberg_fused/native/change_detection.py has the same class in Python.
class ContainerSnapshot {
 public:
  // `containers` are dicts and lists, whose entries are noted as they are now.
  // If `rates` is not 0, a dict counts as unchanged in which only "lr" was replaced, by a float >= 0 that is finite in
  // single precision: the snapshot takes the new rate over. It writes that of container i, as a double, to the address
  // rates + i * stride.
  explicit ContainerSnapshot(const pybind11::list& containers, int64_t rates = 0, int64_t stride = 0);

  // Returns the indices of the containers whose entries are other objects than noted, or in another order; for dicts
  // keys count too. New rates are taken over on the way.
  pybind11::list changed();

  // Returns true if changed() would be empty.
  bool is_unchanged();

  // Notes the entries of a container as they are now.
  void note(size_t index);

  // Returns true if a rate was taken over since the last call.
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
  std::vector<uint64_t> versions_;  // of dicts, when their entries were last compared and found unchanged
};

}  // namespace sf
