// All that a step looks at for edits, in one call, since nearly every step finds none.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "cpu/reader.h"
#include "cpu/watch.h"

namespace sf {

class Lookout {
 public:
  // `watches` are of Watch, `places` of Places.
  Lookout(const pybind11::list& watches, const pybind11::list& places) {
    for (pybind11::handle watch : watches) watches_.push_back(watch.cast<Watch*>());
    for (pybind11::handle place : places) places_.push_back(place.cast<const Places*>());
    kept_.append(watches);
    kept_.append(places);
  }

  // False where somebody has to look closer; new rates are taken over, as Watch does.
  bool is_unchanged() const {
    bool unchanged = true;
    for (Watch* watch : watches_) unchanged &= watch->is_unchanged();
    for (const Places* places : places_) unchanged &= !places->moved();
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
  std::vector<Watch*> watches_;
  std::vector<const Places*> places_;
  pybind11::list kept_;
};

}  // namespace sf
