// Asks all snapshots of an optimizer in one call from Python, since nearly every step finds nothing changed.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "cpu/address_snapshot.h"
#include "cpu/container_snapshot.h"

namespace sf {

// stackelberg_fused/native/change_detection.py has the same class in Python.
class ChangeDetector {
 public:
  // Both are lists of snapshots: `containers` of ContainerSnapshot, `addresses` of AddressSnapshot.
  ChangeDetector(const pybind11::list& containers, const pybind11::list& addresses) {
    for (pybind11::handle snapshot : containers) {
      containers_.push_back(snapshot.cast<ContainerSnapshot*>());
      owners_.append(snapshot);
    }
    for (pybind11::handle snapshot : addresses) {
      addresses_.push_back(snapshot.cast<const AddressSnapshot*>());
      owners_.append(snapshot);
    }
  }

  // Returns false if any snapshot has changed, so that the caller has to find out which. New rates are taken over on
  // the way, as in ContainerSnapshot.
  bool is_unchanged() const {
    bool unchanged = true;
    for (ContainerSnapshot* snapshot : containers_) unchanged &= snapshot->is_unchanged();
    for (const AddressSnapshot* snapshot : addresses_) unchanged &= !snapshot->moved();
    return unchanged;
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(owners_.ptr());
    return 0;
  }
  void clear() {
    containers_.clear();
    addresses_.clear();
    owners_ = pybind11::list();
  }

 private:
  std::vector<ContainerSnapshot*> containers_;
  std::vector<const AddressSnapshot*> addresses_;
  pybind11::list owners_;  // the snapshots' Python objects, which own them
};

}  // namespace sf
