// Tiles are summed in parallel, and their sums added up by one thread.
#include "cpu/statistics.h"

#include "cpu/parallel.h"
#include "summation.h"

namespace sf {

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
    sums[player] = sum_in_lanes(end - begin, [&](int64_t i) { return args.tile_sums[begin + i]; });
  }
  conclude(args, sums[0], sums[1]);
}

}  // namespace sf
