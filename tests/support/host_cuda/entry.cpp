// The functions that host_cuda/backend.py calls through ctypes: the launches of csrc/cuda, run by the shim.
#include "cuda/step.h"
#include "shim.h"

extern "C" {

// Return null, or the error.
const char* sf_host_step(const void* args) { return sf::launch_step(*static_cast<const sf::StepArgs*>(args), 0, 0); }

const char* sf_host_conclude(const void* args) {
  return sf::launch_conclude(*static_cast<const sf::StatisticsArgs*>(args), 0, 0);
}
const char* sf_host_statistics(const void* args) {
  return sf::launch_statistics(*static_cast<const sf::StatisticsArgs*>(args), 0, 0);
}

const char* sf_host_project(const void* args) {
  return sf::launch_project(*static_cast<const sf::ProjectArgs*>(args), 0, 0);
}

void sf_host_set_order(int order, uint64_t seed) { sf_host::set_order(static_cast<sf_host::Order>(order), seed); }

const sf_host::Counters* sf_host_counters() { return &sf_host::counters; }
}
