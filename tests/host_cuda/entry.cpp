// What ctypes calls: csrc/cuda/step.cu as the shim runs it.
#include "cuda/step.h"
#include "shim.h"

extern "C" {

// Null, or what went wrong.
const char* sf_host_step(int64_t records, int64_t tiles, int64_t rows, int64_t first_tile, int64_t num_tiles,
                         int64_t first_head_tile, int64_t signals, int32_t rule) {
  sf::StepArgs args{};
  args.records = reinterpret_cast<const sf::Record*>(records);
  args.tiles = reinterpret_cast<const sf::Tile*>(tiles);
  args.rows = reinterpret_cast<const sf::Row*>(rows);
  args.first_tile = first_tile;
  args.num_tiles = num_tiles;
  args.first_head_tile = first_head_tile;
  args.signals = reinterpret_cast<const sf::Signals*>(signals);
  args.rule = rule;
  return sf::launch_step(args, 0, 0);
}

const char* sf_host_statistics(int64_t records, int64_t tiles, int64_t first_tile, int64_t num_tiles,
                               int64_t first_head_tile, int64_t tile_sums, int64_t signals, double max_body,
                               double max_head, int joint) {
  sf::StatisticsArgs args{};
  args.records = reinterpret_cast<const sf::Record*>(records);
  args.tiles = reinterpret_cast<const sf::Tile*>(tiles);
  args.first_tile = first_tile;
  args.num_tiles = num_tiles;
  args.first_head_tile = first_head_tile;
  args.tile_sums = reinterpret_cast<double*>(tile_sums);
  args.signals = reinterpret_cast<sf::Signals*>(signals);
  args.max_norm[0] = max_body;
  args.max_norm[1] = max_head;
  args.joint = joint;
  return sf::launch_statistics(args, 0, 0);
}

void sf_host_set_order(int order, uint64_t seed) { sf_host::set_order(static_cast<sf_host::Order>(order), seed); }

const sf_host::Counters* sf_host_counters() { return &sf_host::counters; }
}
