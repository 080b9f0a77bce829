// Registrations only. Arguments are plain addresses, so that no torch header is needed.
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
      [](std::string_view args, int device, int64_t stream) {
        check(sf::launch_step(sf::unpack<sf::StepArgs>(args), device, stream));
      },
      "Enqueue the update of the tiles [first_tile, first_tile + num_tiles); `args`: packed STEP_ARGS.", arg("args"),
      arg("device"), arg("stream"));
  m.def(
      "statistics",
      [](std::string_view args, int device, int64_t stream) {
        check(sf::launch_statistics(sf::unpack<sf::StatisticsArgs>(args), device, stream));
      },
      "Enqueue the statistics of the tiles' gradients; `args`: packed STATISTICS_ARGS.", arg("args"), arg("device"),
      arg("stream"));
  m.def(
      "conclude",
      [](std::string_view args, int device, int64_t stream) {
        check(sf::launch_conclude(sf::unpack<sf::StatisticsArgs>(args), device, stream));
      },
      "Enqueue what follows from the digits of the statistics; `args`: packed STATISTICS_ARGS.", arg("args"),
      arg("device"), arg("stream"));
  m.def(
      "project",
      [](std::string_view args, int device, int64_t stream) {
        check(sf::launch_project(sf::unpack<sf::ProjectArgs>(args), device, stream));
      },
      "Enqueue the projection of what a step moved onto its joint sets; `args`: packed PROJECT_ARGS.", arg("args"),
      arg("device"), arg("stream"));
  m.def("runtime_version", &sf::runtime_version);
  m.def("driver_version", &sf::driver_version);
}
