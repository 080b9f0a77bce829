#include "summation.h"

#include "cpu/parallel.h"
#include "cpu/statistics.h"

namespace sf {
namespace {

double sum_of(const double* sums, int64_t count) {
  double lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i % kLanes] += sums[i];
  for (int half = kLanes / 2; half; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace

void compute_statistics(const StatisticsArgs& args, TileSum tile_sum, int threads) {
  struct Context {
    const StatisticsArgs& args;
    TileSum tile_sum;
  } context{args, tile_sum};
  parallel_for(
      args.num_tiles, threads,
      [](void* opaque, int64_t begin, int64_t end) {
        const auto& [args, tile_sum] = *static_cast<Context*>(opaque);
        for (int64_t t = args.first_tile + begin; t < args.first_tile + end; ++t) {
          args.tile_sums[t] = tile_sum(args, t);
        }
      },
      &context);
  double sums[2];
  for (int player = 0; player < 2; ++player) {
    int64_t begin, end;
    player_tiles(args, player, begin, end);
    sums[player] = sum_of(args.tile_sums + begin, end - begin);
  }
  conclude(args, sums[0], sums[1]);
}

}  // namespace sf
