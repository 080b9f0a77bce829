// Registrations only. Arguments are plain addresses, so that no torch header is needed.
#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "bindings_common.h"
#include "cpu/address_snapshot.h"
#include "cpu/bandwidth_probe.h"
#include "cpu/change_detector.h"
#include "cpu/container_snapshot.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/project.h"
#include "cpu/reader.h"
#include "cpu/rows.h"
#include "cpu/statistics.h"
#include "cpu/step.h"
#include "cpu/tensor_abi.h"

namespace {

const sf::Kernel& require_kernel(const std::string& isa) {
  const sf::Kernel* kernel = sf::select_kernel(isa.c_str());
  if (!kernel) throw std::runtime_error("this processor has no " + isa + " kernel");
  return *kernel;
}

void step(std::string_view packed, int threads, const std::string& isa) {
  struct Context {
    sf::StepArgs args;
    sf::UpdateTiles update_tiles;
  } context{sf::unpack<sf::StepArgs>(packed), require_kernel(isa).update_tiles};
  pybind11::gil_scoped_release release;
  sf::parallel_for(
      context.args.num_tiles, threads,
      [](void* opaque, int64_t begin, int64_t end) {
        const Context& c = *static_cast<Context*>(opaque);
        c.update_tiles(c.args, c.args.first_tile + begin, c.args.first_tile + end);
      },
      &context);
  if (context.args.sets) sf::conclude_balls(context.args);
}

void statistics(std::string_view packed, int threads, const std::string& isa) {
  const auto args = sf::unpack<sf::StatisticsArgs>(packed);
  const sf::Kernel& kernel = require_kernel(isa);
  pybind11::gil_scoped_release release;
  sf::compute_statistics(args, kernel.sum_tiles, threads);
}

void conclude(std::string_view packed) { sf::conclude_digits(sf::unpack<sf::StatisticsArgs>(packed)); }

void project(std::string_view packed, int threads) {
  const auto args = sf::unpack<sf::ProjectArgs>(packed);
  pybind11::gil_scoped_release release;
  sf::project(args, threads);
}

void stream_adam_bytes(int64_t param, int64_t grad, int64_t exp_avg, int64_t exp_avg_sq, int64_t numel, int threads) {
  struct Context {
    float *param, *grad, *exp_avg, *exp_avg_sq;
    int64_t numel;
    sf::StreamAdam stream;
  } context{reinterpret_cast<float*>(param),
            reinterpret_cast<float*>(grad),
            reinterpret_cast<float*>(exp_avg),
            reinterpret_cast<float*>(exp_avg_sq),
            numel,
            sf::select_bandwidth_probe().stream_adam};
  constexpr int64_t block = sf::kTileElements;
  pybind11::gil_scoped_release release;
  sf::parallel_for((numel + block - 1) / block, threads,
                   [](void* opaque, int64_t begin, int64_t end) {
                     const Context& c = *static_cast<Context*>(opaque);
                     const int64_t first = begin * block, last = end * block < c.numel ? end * block : c.numel;
                     c.stream(c.param + first, c.grad + first, c.exp_avg + first, c.exp_avg_sq + first, last - first);
                   },
                   &context);
}

bool is_constructed(PyObject* self) {
  return reinterpret_cast<pybind11::detail::instance*>(self)->get_value_and_holder().holder_constructed();
}

// Lets the garbage collector see the Python objects that a class holds. They may in turn hold the optimizer, for
// example as an attribute of a parameter.
template <typename T>
pybind11::custom_type_setup collected() {
  return pybind11::custom_type_setup([](PyHeapTypeObject* heap_type) {
    PyTypeObject* type = &heap_type->ht_type;
    type->tp_flags |= Py_TPFLAGS_HAVE_GC;
    type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
      Py_VISIT(Py_TYPE(self));
      if (!is_constructed(self)) return 0;
      return pybind11::cast<T&>(pybind11::handle(self)).traverse(visit, arg);
    };
    type->tp_clear = [](PyObject* self) {
      if (is_constructed(self)) pybind11::cast<T&>(pybind11::handle(self)).clear();
      return 0;
    };
  });
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  sf::register_tables(m);
  using pybind11::arg;
  m.def("step", &step, "Update the tiles [first_tile, first_tile + num_tiles); `args`: packed STEP_ARGS.", arg("args"),
        arg("threads"), arg("isa") = "");
  m.def("statistics", &statistics, "Compute the statistics of the tiles' gradients; `args`: packed STATISTICS_ARGS.",
        arg("args"), arg("threads"), arg("isa") = "");
  m.def("conclude", &conclude, "Write what follows from the digits of the statistics; `args`: packed STATISTICS_ARGS.",
        arg("args"));
  m.def("project", &project, "Project what step() moved onto its joint sets; `args`: packed PROJECT_ARGS.", arg("args"),
        arg("threads"));
  m.def(
      "find_bad_count", [](int64_t table) { return sf::find_bad_count(*reinterpret_cast<const sf::RowTable*>(table)); },
      "Return the first slot of a table with an invalid step count, or -1.", pybind11::arg("table"));
  m.def(
      "update_rows", [](int64_t table) { return sf::update_rows(*reinterpret_cast<const sf::RowTable*>(table)); },
      "Compute the rows of a table for the coming step; return False if its slots have to be regrouped.",
      pybind11::arg("table"));
  m.def("stream_adam_bytes", &stream_adam_bytes, "Read four float32 arrays and write three: 28 B per element.");
  m.def(
      "isa", [](const std::string& isa) { return std::string(require_kernel(isa).isa); }, pybind11::arg("isa") = "",
      "The instruction set that step() takes.");
  pybind11::class_<sf::TensorAbi, std::shared_ptr<sf::TensorAbi>>(
      m, "TensorAbi", "How torch's tensors are read; see stackelberg_fused/native/tensor_abi.py.")
      .def(pybind11::init<pybind11::tuple, pybind11::object, pybind11::object, int64_t, int64_t, const std::string&>(),
           pybind11::arg("types"), pybind11::arg("no_dispatch"), pybind11::arg("probe"), pybind11::arg("impl"),
           pybind11::arg("address"), pybind11::arg("library") = "")
      .def("increment_versions", &sf::TensorAbi::increment_versions, pybind11::arg("tensors"))
      .def("describe", &sf::TensorAbi::describe, pybind11::arg("tensor"))
      .def("describe_gradient", &sf::TensorAbi::describe_gradient, pybind11::arg("tensor"))
      .def("gradient_object", &sf::TensorAbi::gradient_object, pybind11::arg("tensor"))
      .def_static("keep_gradients", &sf::TensorAbi::keep_gradients, pybind11::arg("abi"), pybind11::arg("tensors"));
  m.def(
      "find_libtorch", [] { return sf::TorchFunctions("").path; },
      "Where libtorch lies whose functions TensorAbi calls; RuntimeError where it lacks one of them.");
  pybind11::class_<sf::TensorAbi::HeldTensors>(m, "HeldTensors", "Tensors that stay alive as long as this does.");
  pybind11::class_<sf::Reader>(m, "Reader", collected<sf::Reader>(),
                               "Reads addresses of parameters and gradients; see stackelberg_fused/native/reader.py.")
      .def(pybind11::init<pybind11::list, pybind11::list, int64_t, int64_t, std::shared_ptr<const sf::TensorAbi>,
                          pybind11::object>(),
           pybind11::arg("owners"), pybind11::arg("local_tensors"), pybind11::arg("records"), pybind11::arg("active"),
           pybind11::arg("abi"), pybind11::arg("dtensor") = pybind11::none())
      .def("read", &sf::Reader::read, pybind11::arg("first"), pybind11::arg("last"));
  pybind11::class_<sf::AddressSnapshot>(
      m, "AddressSnapshot", collected<sf::AddressSnapshot>(),
      "Detects tensors whose memory was exchanged; see stackelberg_fused/native/change_detection.py.")
      .def(pybind11::init<pybind11::list, std::shared_ptr<const sf::TensorAbi>>(), pybind11::arg("tensors"),
           pybind11::arg("abi"))
      .def("moved", &sf::AddressSnapshot::moved);
  pybind11::class_<sf::ContainerSnapshot>(
      m, "ContainerSnapshot", collected<sf::ContainerSnapshot>(),
      "Detects dicts and lists with replaced entries; see stackelberg_fused/native/change_detection.py.")
      .def(pybind11::init<pybind11::list, int64_t, int64_t>(), pybind11::arg("containers"), pybind11::arg("rates") = 0,
           pybind11::arg("stride") = 0)
      .def("changed", &sf::ContainerSnapshot::changed)
      .def("took_over", &sf::ContainerSnapshot::took_over)
      .def("note", &sf::ContainerSnapshot::note, pybind11::arg("index"));
  pybind11::class_<sf::ChangeDetector>(
      m, "ChangeDetector", collected<sf::ChangeDetector>(),
      "All snapshots of an optimizer; see stackelberg_fused/native/change_detection.py.")
      .def(pybind11::init<pybind11::list, pybind11::list>(), pybind11::arg("containers"), pybind11::arg("addresses"))
      .def("is_unchanged", &sf::ChangeDetector::is_unchanged);
  m.def("thread_pool", [] { return std::string(sf::thread_pool_name()); });
}
