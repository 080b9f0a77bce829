// All that a step looks at for edits, in one call, since nearly every step finds none.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "cpu/container_snapshot.h"
#include "cpu/reader.h"

namespace sf {

class ChangeDetector {
 public:
  // `watches` are of ContainerSnapshot, `places` of AddressSnapshot.
  ChangeDetector(const pybind11::list& watches, const pybind11::list& places) {
    for (pybind11::handle watch : watches) watches_.push_back(watch.cast<ContainerSnapshot*>());
    for (pybind11::handle place : places) places_.push_back(place.cast<const AddressSnapshot*>());
    kept_.append(watches);
    kept_.append(places);
  }

  // False where somebody has to look closer; new rates are taken over, as ContainerSnapshot does.
  bool is_unchanged() const {
    bool unchanged = true;
    for (ContainerSnapshot* watch : watches_) unchanged &= watch->is_unchanged();
    for (const AddressSnapshot* places : places_) unchanged &= !places->moved();
    return unchanged;
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(kept_.ptr());
    return 0;
  }
  void clear() {
    watches_.clear();
    places_.clear();
    kept_ = pybind11::list();
  }

 private:
  std::vector<ContainerSnapshot*> watches_;
  std::vector<const AddressSnapshot*> places_;
  pybind11::list kept_;
};

}  // namespace sf
