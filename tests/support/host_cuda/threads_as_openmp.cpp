// Stands for torch's libtorch_cpu.so in threaded.cpp: the entry points of GNU OpenMP, on threads that ThreadSanitizer
// knows. Those of the real runtime synchronize in ways that it does not see.
#include <thread>
#include <vector>

namespace {
thread_local int index = 0, size = 1;
}

extern "C" {

int omp_get_thread_num() { return index; }
int omp_get_num_threads() { return size; }

void GOMP_parallel(void (*work)(void*), void* context, unsigned threads, unsigned) {
  const auto run = [&](unsigned number) {
    index = static_cast<int>(number), size = static_cast<int>(threads);
    work(context);
    index = 0, size = 1;
  };
  std::vector<std::thread> workers;
  for (unsigned number = 1; number < threads; ++number) workers.emplace_back(run, number);
  run(0);
  for (std::thread& worker : workers) worker.join();
}
}
