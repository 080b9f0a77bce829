// Threads add up tiles as they come, because exact sums have no order.
#include "cpu/statistics.h"

#include "clipping.h"
#include "cpu/parallel.h"

namespace sf {

void compute_statistics(const StatisticsArgs& args, SumTiles sum_tiles, int threads) {
  struct Context {
    const StatisticsArgs& args;
    SumTiles sum_tiles;
  } context{args, sum_tiles};
  parallel_for(
      args.num_tiles, threads,
      [](void* opaque, int64_t begin, int64_t end) {
        const auto& [args, sum_tiles] = *static_cast<Context*>(opaque);
        sum_tiles(args, args.first_tile + begin, args.first_tile + end);
      },
      &context);
  double sums[2];
  for (int player = 0; player < 2; ++player) {
    sums[player] = conclude_sum(args.sums[player], args.digits + player * kHostWords);
    args.sums[player] = {};
  }
  conclude(args, sums[0], sums[1]);
}

void conclude_digits(const StatisticsArgs& args) {
  double sums[2];
  for (int player = 0; player < 2; ++player) {
    int64_t* words = args.digits + player * kHostWords;
    ExactSum sum = read_sum(words);
    sums[player] = conclude_sum(sum, words);
  }
  conclude(args, sums[0], sums[1]);
}

}  // namespace sf
