// Registrations only: plain addresses in, nothing of torch.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "bindings_common.h"
#include "cuda/step.h"

PYBIND11_MODULE(_cuda, m) {
  sf::register_tables(m);
  m.def(
      "step",
      [](int64_t records, int64_t tiles, int64_t rows, int64_t first_tile, int64_t num_tiles, int32_t rule, int device,
         int64_t stream) {
        const char* error =
            sf::launch_step(sf::step_args(records, tiles, rows, first_tile, num_tiles, rule), device, stream);
        if (error) throw std::runtime_error(std::string("CUDA launch failed: ") + error);
      },
      "Enqueue the update of the tiles [first_tile, first_tile + num_tiles) on a stream.", pybind11::arg("records"),
      pybind11::arg("tiles"), pybind11::arg("rows"), pybind11::arg("first_tile"), pybind11::arg("num_tiles"),
      pybind11::arg("rule"), pybind11::arg("device"), pybind11::arg("stream"));
  m.def("runtime_version", &sf::runtime_version);
  m.def("driver_version", &sf::driver_version);
}
