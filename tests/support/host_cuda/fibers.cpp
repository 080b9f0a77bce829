// Runs blocks one after another, and the threads of a block as fibers on one operating system thread.
//
// A fiber runs one thread after another until a thread has to wait; only then another fiber starts. So a kernel without
// barriers costs a function call per thread, and one with barriers two context switches per thread and barrier.
#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "context.h"
#include "shim.h"

namespace sf_host {

const Thread* self;
dim3 block_index, block_dim, grid_dim;
Counters counters;

namespace {

struct Fiber {
  Context context;
  const Thread* thread = nullptr;
};

// Threads that wait for each other: those of a block, or the lanes of one mask.
struct Gathering {
  unsigned mask = 0;
  unsigned expected = 0;
  std::vector<Fiber*> waiting;
  const char* file = nullptr;
  int line = 0;
};

struct Warp {
  std::vector<Gathering> gatherings;
  uint64_t offers[32];
};

const std::function<void()>* kernel;
std::vector<Thread> threads;
std::vector<unsigned> start_order;
std::vector<Warp> warps;
Gathering block_gathering;
unsigned started, finished;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle, ready;
Context scheduler;
Fiber* running;

Order order = Order::kForward;
std::mt19937_64 random_bits;
std::string failure;  // of the launch that is running
std::string pending_error, reported_error;

void to_scheduler() { Context::switch_between(running->context, scheduler); }

void fiber_main() {
  scheduler.was_left();
  while (true) {
    while (started < threads.size()) {
      self = running->thread = &threads[start_order[started++]];
      (*kernel)();
      ++finished;
    }
    idle.push_back(running);
    to_scheduler();
  }
}

Fiber* idle_fiber() {
  if (idle.empty()) {
    fibers.emplace_back(new Fiber);
    Fiber* fiber = fibers.back().get();
    fiber->context.start_at(fiber_main);
    return fiber;
  }
  Fiber* fiber = idle.back();
  idle.pop_back();
  return fiber;
}

template <typename T>
void arrange(std::vector<T>& items) {
  if (order == Order::kReverse) std::reverse(items.begin(), items.end());
  if (order == Order::kShuffled) std::shuffle(items.begin(), items.end(), random_bits);
}

std::string place(const char* file, int line) {
  const std::string path = file;
  return path.substr(path.rfind('/') + 1) + ":" + std::to_string(line);
}

[[noreturn]] void stop(const std::string& why) {
  failure = why + " (block " + std::to_string(block_index.x) + ", thread " + std::to_string(self->rank) + ")";
  to_scheduler();
  __builtin_unreachable();
}

void gather(Gathering& at, const char* file, int line) {
  if (at.waiting.empty()) {
    at.file = file;
    at.line = line;
  } else if (at.line != line || std::strcmp(at.file, file)) {
    stop("threads of one block wait at " + place(at.file, at.line) + " and at " + place(file, line));
  }
  if (at.waiting.size() + 1 < at.expected) {
    at.waiting.push_back(running);
    to_scheduler();
    return;
  }
  arrange(at.waiting);
  ready.insert(ready.end(), at.waiting.begin(), at.waiting.end());
  at.waiting.clear();
}

void report_deadlock(const Gathering& at) {
  if (at.waiting.empty() || !failure.empty()) return;
  failure = std::to_string(at.waiting.size()) + " of " + std::to_string(at.expected) + " threads wait at " +
            place(at.file, at.line) + " for others that returned or wait elsewhere (block " +
            std::to_string(block_index.x) + ")";
}

// Returns true if every thread ran to its end.
bool run_block() {
  started = finished = 0;
  start_order.resize(threads.size());
  std::iota(start_order.begin(), start_order.end(), 0u);
  arrange(start_order);
  while (finished < threads.size()) {
    const bool may_start = started < threads.size();
    if (ready.empty() && !may_start) {
      report_deadlock(block_gathering);
      for (const Warp& warp : warps) {
        for (const Gathering& at : warp.gatherings) report_deadlock(at);
      }
      return false;
    }
    if (ready.empty() || (may_start && order == Order::kShuffled && random_bits() % 2)) {
      running = idle_fiber();
    } else {
      running = ready.back();
      ready.pop_back();
      self = running->thread;
    }
    Context::switch_between(scheduler, running->context);
    if (!failure.empty()) return false;
  }
  return true;
}

void forget_fibers() {
  fibers.clear();
  idle.clear();
  ready.clear();
  running = nullptr;
}

unsigned count_threads(dim3 d) { return d.x * d.y * d.z; }

dim3 position(unsigned rank, dim3 extent) {
  return {rank % extent.x, rank / extent.x % extent.y, rank / extent.x / extent.y};
}

}  // namespace

void launch(dim3 grid, dim3 block, const std::function<void()>& body) {
  ++counters.launches;
  const unsigned num_blocks = count_threads(grid), num_threads = count_threads(block);
  if (!num_blocks || !num_threads || num_threads > 1024) {
    pending_error = "invalid configuration argument";
    return;
  }
  kernel = &body;
  grid_dim = grid;
  block_dim = block;
  threads.resize(num_threads);
  for (unsigned i = 0; i < num_threads; ++i) threads[i] = {position(i, block), i};
  warps.assign((num_threads + 31) / 32, Warp());
  block_gathering = Gathering();
  block_gathering.expected = num_threads;
  std::vector<unsigned> blocks(num_blocks);
  std::iota(blocks.begin(), blocks.end(), 0u);
  arrange(blocks);
  failure.clear();
  for (unsigned b : blocks) {
    block_index = position(b, grid);
    ++counters.blocks;
    if (!run_block()) {
      if (pending_error.empty()) pending_error = failure;
      forget_fibers();
      break;
    }
  }
  self = nullptr;
}

void sync_block(const char* file, int line) { gather(block_gathering, file, line); }

void sync_warp(unsigned mask, const char* file, int line) {
  Warp& warp = warps[self->rank / 32];
  if (!(mask >> lane() & 1)) stop(place(file, line) + ": the calling lane is not in the mask");
  const unsigned in_warp = std::min<unsigned>(32, threads.size() - self->rank / 32 * 32);
  if (in_warp < 32) mask &= (1u << in_warp) - 1;
  auto at = std::find_if(warp.gatherings.begin(), warp.gatherings.end(), [=](auto& g) { return g.mask == mask; });
  if (at == warp.gatherings.end()) {
    at = warp.gatherings.emplace(at);
    at->mask = mask;
    at->expected = __builtin_popcount(mask);
  }
  gather(*at, file, line);
}

uint64_t exchange(unsigned mask, uint64_t offer, unsigned source, const char* file, int line) {
  Warp& warp = warps[self->rank / 32];
  warp.offers[lane()] = offer;
  sync_warp(mask, file, line);
  if (!(mask >> source & 1)) stop(place(file, line) + ": reads a lane that is not in the mask");
  const uint64_t result = warp.offers[source];
  sync_warp(mask, file, line);  // no lane offers again before all have read
  return result;
}

unsigned reduce(unsigned mask, unsigned value, unsigned (*combine)(unsigned, unsigned), const char* file, int line) {
  Warp& warp = warps[self->rank / 32];
  warp.offers[lane()] = value;
  sync_warp(mask, file, line);
  auto result = static_cast<unsigned>(warp.offers[__builtin_ctz(mask)]);
  for (unsigned source = __builtin_ctz(mask) + 1; source < 32; ++source) {
    if (mask >> source & 1) result = combine(result, static_cast<unsigned>(warp.offers[source]));
  }
  sync_warp(mask, file, line);  // no lane offers again before all have read
  return result;
}

bool any(unsigned mask, bool says, const char* file, int line) {
  Warp& warp = warps[self->rank / 32];
  warp.offers[lane()] = says;
  sync_warp(mask, file, line);
  bool found = false;
  for (unsigned source = 0; source < 32; ++source) found |= (mask >> source & 1) && warp.offers[source];
  sync_warp(mask, file, line);  // no lane offers again before all have read
  return found;
}

void stop(const char* why) { stop(std::string(why)); }

void set_order(Order new_order, uint64_t seed) {
  order = new_order;
  random_bits.seed(seed);
}

const char* reported() { return reported_error.c_str(); }

}  // namespace sf_host

cudaError_t cudaGetLastError() {
  using namespace sf_host;
  reported_error.swap(pending_error);
  pending_error.clear();
  return reported_error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : sf_host::reported(); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
