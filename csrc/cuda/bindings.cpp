// Registrations only: plain addresses in, nothing of torch.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bindings_common.h"
#include "cuda/step.h"

namespace {

void check(const char* error) {
  if (error) throw std::runtime_error(std::string("CUDA launch failed: ") + error);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  sf::register_tables(m);
  using pybind11::arg;
  m.def(
      "step",
      [](int64_t records, int64_t tiles, int64_t rows, int64_t first_tile, int64_t num_tiles, int64_t first_head_tile,
         int64_t signals, int32_t rule, int device, int64_t stream) {
        check(
            sf::launch_step(sf::step_args(records, tiles, rows, first_tile, num_tiles, first_head_tile, signals, rule),
                            device, stream));
      },
      "Enqueue the update of the tiles [first_tile, first_tile + num_tiles) on a stream.", arg("records"), arg("tiles"),
      arg("rows"), arg("first_tile"), arg("num_tiles"), arg("first_head_tile"), arg("signals"), arg("rule"),
      arg("device"), arg("stream"));
  m.def(
      "statistics",
      [](int64_t records, int64_t tiles, int64_t first_tile, int64_t num_tiles, int64_t first_head_tile,
         int64_t tile_sums, int64_t signals, double max_body, double max_head, bool joint, int device, int64_t stream) {
        check(sf::launch_statistics(sf::statistics_args(records, tiles, first_tile, num_tiles, first_head_tile,
                                                        tile_sums, signals, max_body, max_head, joint),
                                    device, stream));
      },
      "Enqueue the statistics of the tiles' gradients on a stream.", arg("records"), arg("tiles"), arg("first_tile"),
      arg("num_tiles"), arg("first_head_tile"), arg("tile_sums"), arg("signals"), arg("max_body"), arg("max_head"),
      arg("joint"), arg("device"), arg("stream"));
  m.def("runtime_version", &sf::runtime_version);
  m.def("driver_version", &sf::driver_version);
}
