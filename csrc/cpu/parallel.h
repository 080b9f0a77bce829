// One parallel loop, on the threads of torch.
#pragma once

#include <cstdint>

namespace sf {

// Runs work(context, begin, end) over [0, count) on `threads` threads. Each starts with its own contiguous share, so
// that a core finds in its cache what it updated a step ago, and then helps the others.
void parallel_for(int64_t count, int threads, void (*work)(void* context, int64_t begin, int64_t end), void* context);

// Returns "torch-openmp", or "std::thread" if torch's OpenMP runtime cannot be found.
const char* thread_pool_name();

}  // namespace sf
