// Borrows torch's threads, because a spinning pool of our own would fight torch's for the cores: it looks up the OpenMP
// entry point that libtorch_cpu itself calls. If there is none (no torch, or another OpenMP ABI), short-lived
// std::threads do the work; these take longer to start, but never spin.
#include "cpu/parallel.h"

#include <dlfcn.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace sf {
namespace {

struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread_index)() = nullptr;
  int (*team_size)() = nullptr;

  OpenMP() {
    for (const char* name : {"libtorch_cpu.so", "libtorch_cpu.dylib"}) {
      void* torch = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
      if (!torch) continue;
      // dlsym on a handle searches the library and its dependencies: the very symbols torch is bound to.
      auto parallel_symbol = dlsym(torch, "GOMP_parallel");
      auto index_symbol = dlsym(torch, "omp_get_thread_num");
      auto size_symbol = dlsym(torch, "omp_get_num_threads");
      if (parallel_symbol && index_symbol && size_symbol) {
        parallel = reinterpret_cast<decltype(parallel)>(parallel_symbol);
        thread_index = reinterpret_cast<decltype(thread_index)>(index_symbol);
        team_size = reinterpret_cast<decltype(team_size)>(size_symbol);
      }
      dlclose(torch);
    }
  }
};

const OpenMP& openmp() {
  static const OpenMP instance;
  return instance;
}

struct alignas(64) Share {
  std::atomic<int64_t> next;
  int64_t end;
};

struct Job {
  void (*work)(void*, int64_t, int64_t);
  void* context;
  Share* shares;
  int num_shares;
  int64_t chunk;

  void run(int thread) const {
    for (int k = 0; k < num_shares; ++k) {
      Share& share = shares[(thread + k) % num_shares];
      while (true) {
        const int64_t begin = share.next.fetch_add(chunk, std::memory_order_relaxed);
        if (begin >= share.end) break;
        work(context, begin, begin + chunk < share.end ? begin + chunk : share.end);
      }
    }
  }
};

void run_openmp_thread(void* job) { static_cast<const Job*>(job)->run(openmp().thread_index()); }

}  // namespace

void parallel_for(int64_t count, int threads, void (*work)(void*, int64_t, int64_t), void* context) {
  if (threads > count) threads = static_cast<int>(count);
  if (threads <= 1) {
    if (count > 0) work(context, 0, count);
    return;
  }
  std::unique_ptr<Share[]> shares(new Share[threads]);
  for (int t = 0; t < threads; ++t) {
    shares[t].next.store(count * t / threads, std::memory_order_relaxed);
    shares[t].end = count * (t + 1) / threads;
  }
  const int64_t chunk = count / (threads * 16) + 1;
  const Job job{work, context, shares.get(), threads, chunk};
  if (openmp().parallel) {
    openmp().parallel(run_openmp_thread, const_cast<Job*>(&job), static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> workers;
  for (int t = 1; t < threads; ++t) workers.emplace_back([&job, t] { job.run(t); });
  job.run(0);
  for (std::thread& worker : workers) worker.join();
}

const char* thread_pool_name() { return openmp().parallel ? "torch-openmp" : "std::thread"; }

}  // namespace sf
