// Runs csrc/cpu on several threads under ThreadSanitizer: the update, the statistics and the projection, in float32 and
// in fewer bits, by the whole table and by two players at the same time. The results have to be those of one thread,
// bit by bit. With "openmp LIBRARY" first, the threads are those of a library that stands for torch's OpenMP. With
// "race" it makes a mistake on purpose, which the sanitizer has to report.
#include <dlfcn.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

#include "codec.h"
#include "cpu/parallel.h"
#include "cpu/project.h"
#include "cpu/statistics.h"
#include "cpu/step.h"
#include "tiles.h"

namespace sf {
namespace {

constexpr int64_t kSizes[] = {0, 1, 17, 63, 4095, 4097, 20001};
#define SF_ENTRY(rule) (rule),
constexpr int32_t kRules[] = {SF_FOR_EACH_RULE(SF_ENTRY)};

// The tables of one launch: for every rule a group with a parameter of each size, the second half of them the head's.
struct Problem {
  std::deque<std::vector<float>> memory;  // of which nothing moves
  std::vector<Record> records;
  std::vector<Tile> tiles;
  std::vector<Row> rows;
  std::vector<JointSet> sets;
  std::vector<Tile> pieces;
  std::vector<ExactSum> sums, set_sums;
  std::vector<int64_t> digits, set_digits;
  std::vector<double> set_factors;
  std::vector<int32_t> moved, tiles_done;
  GradientStatistics statistics{};
  StepArgs args{};
  uint32_t state = 1;

  explicit Problem(bool is_low_precision) {
    for (int32_t rule : kRules) add_group(rule, is_low_precision);
    add_joint_sets(is_low_precision);
    sums.resize(2 * kSumCopies);
    digits.resize(2 * kHostWords);
    set_sums.resize(sets.size() * kSumCopies);
    set_digits.resize(sets.size() * kHostWords);
    set_factors.resize(sets.size());
    tiles_done.resize(sets.size());
    moved.resize(records.size());
    args.records = records.data();
    args.tiles = tiles.data();
    args.rows = rows.data();
    args.num_tiles = static_cast<int64_t>(tiles.size());
    args.first_head_tile = args.num_tiles / 2;
    args.rule = kMixedRules;
    args.is_low_precision = is_low_precision;
    args.statistics = &statistics;
    args.sets = sets.empty() ? nullptr : sets.data();
    args.set_sums = set_sums.data();
    args.set_digits = set_digits.data();
    args.set_factors = set_factors.data();
    args.set_tiles_done = tiles_done.data();
    args.moved = moved.data();
  }

  float pseudo_random() {
    state = state * 1664525u + 1013904223u;
    return static_cast<float>(state >> 8) / (1 << 23) - 1;
  }

  // Memory for `bytes`, of numbers if it is to hold float32, else of zeros, which are codes of zero as well.
  int64_t buffer(int64_t bytes, bool numbers, bool squares = false) {
    memory.emplace_back((bytes + 3) / 4, 0.0f);
    for (float& x : memory.back()) {
      const float drawn = numbers ? pseudo_random() : 0.0f;
      x = squares ? drawn * drawn : drawn;
    }
    return reinterpret_cast<int64_t>(memory.back().data());
  }

  void add_group(int32_t rule, bool is_low_precision) {
    Row row{};
    row.rule = rule;
    row.grad_sign = 1;
    row.param_decay = 0.999f, row.weight_decay = 0.01f;
    row.lerp_weight = 0.1f, row.beta2 = 0.999f, row.one_minus_beta2 = 0.001f;
    row.step_size = 0.003f, row.eps = 1e-8f;
    row.momentum = 0.9f, row.one_minus_dampening = 1, row.ema_weight = 0.01f;
    row.low = -INFINITY, row.high = INFINITY;
    row.step = 3;
    rows.push_back(row);
    for (int64_t size : kSizes) add_parameter(rule, size, is_low_precision);
  }

  void add_parameter(int32_t rule, int64_t size, bool is_low_precision) {
    Record record{};
    const int64_t blocks = (size + kBlock - 1) / kBlock, wide = 4 * size;
    const bool adam = !(rule & kSgd), amsgrad = rule & kAmsgrad;
    record.numel = size;
    record.row = static_cast<int64_t>(rows.size()) - 1;
    record.key = size + rule;
    record.grad = size == 63 ? 0 : buffer(wide, true);
    if (rule & kEma) record.ema = buffer(wide, true);
    if (is_low_precision) {
      record.format = kBfloat16 | kState8 << 2 | (size % 2 ? kSplit8 : kStochastic) << 4;
      record.param = buffer(2 * size, false);
      record.master = buffer(size, false);
      record.exp_avg = buffer(size, false), record.exp_avg_scale = buffer(blocks, false);
      record.exp_avg_sq = buffer(size, false), record.exp_avg_sq_scale = buffer(blocks, false);
      record.max_exp_avg_sq = buffer(size, false), record.max_exp_avg_sq_scale = buffer(blocks, false);
    } else {
      record.param = buffer(wide, true);
      if (adam || rule & kMomentum) record.exp_avg = buffer(wide, true);
      if (adam) record.exp_avg_sq = buffer(wide, true, true);
      if (adam && amsgrad) record.max_exp_avg_sq = buffer(wide, true, true);
    }
    append(records, tiles, record);
  }

  // Each group has a ball or, its parameters being rows, a simplex.
  void add_joint_sets(bool is_low_precision) {
    if (is_low_precision) return;
    size_t tile = 0;
    for (size_t group = 0; group < rows.size(); ++group) {
      const bool is_ball = group % 2 == 0;
      const size_t first = tile;
      while (tile < tiles.size() && records[tiles[tile].record].row == static_cast<int64_t>(group)) ++tile;
      const auto first_tile = static_cast<int64_t>(first), num_tiles = static_cast<int64_t>(tile - first);
      sets.push_back({is_ball ? kBall : kSimplex, 1.0, 0.99, 1.0, first_tile, num_tiles});
      rows[group].rule &= ~kEma;  // the projection averages
      for (size_t i = 0; i < records.size(); ++i) {
        Record& record = records[i];
        if (record.row != static_cast<int64_t>(group)) continue;
        record.set = static_cast<int64_t>(sets.size());
        record.row_length = record.numel, record.row_stride = 1;
        if (!is_ball && record.numel) pieces.push_back({static_cast<int32_t>(i), 1, 0, 0});
      }
      if (is_ball) pieces.insert(pieces.end(), tiles.begin() + first_tile, tiles.begin() + first_tile + num_tiles);
    }
  }

  void measure(int threads) {
    StatisticsArgs of{};
    of.records = args.records, of.tiles = args.tiles, of.rows = args.rows;
    of.num_tiles = args.num_tiles, of.first_head_tile = args.first_head_tile;
    of.sums = sums.data(), of.digits = digits.data(), of.statistics = &statistics;
    of.max_norm[0] = 1, of.max_norm[1] = 0.5;
    compute_statistics(of, kernel_baseline.sum_tiles, threads);
  }

  // As `step` of cpu/bindings.cpp.
  void update(int64_t first, int64_t count, int threads) {
    struct Context {
      const StepArgs& args;
      int64_t first;
    } context{args, first};
    parallel_for(
        count, threads,
        [](void* opaque, int64_t begin, int64_t end) {
          const Context& c = *static_cast<Context*>(opaque);
          kernel_baseline.update_tiles(c.args, c.first + begin, c.first + end);
        },
        &context);
    StepArgs here = args;
    here.first_tile = first, here.num_tiles = count;
    if (here.sets) conclude_balls(here);
  }

  void project_all(int threads) {
    if (sets.empty()) return;
    ProjectArgs of{};
    of.records = args.records, of.rows = args.rows, of.sets = args.sets, of.pieces = pieces.data();
    of.num_pieces = static_cast<int64_t>(pieces.size());
    of.set_factors = args.set_factors, of.moved = args.moved;
    project(of, threads);
  }

  void step(int threads, bool players_at_once) {
    measure(threads);
    if (players_at_once) {
      // the players share no parameter, though perhaps a group, whose rows they only read
      int64_t head = args.first_head_tile;
      while (head < args.num_tiles && tiles[head].offset) ++head;
      std::thread other([&] { update(head, args.num_tiles - head, threads); });
      update(0, head, threads);
      other.join();
    } else {
      update(0, args.num_tiles, threads);
    }
    project_all(threads);
  }

  bool same_bits(const Problem& other) const {
    for (size_t i = 0; i < memory.size(); ++i) {
      if (std::memcmp(memory[i].data(), other.memory[i].data(), memory[i].size() * sizeof(float))) return false;
    }
    return digits == other.digits && set_digits == other.set_digits && set_factors == other.set_factors &&
           !std::memcmp(&statistics, &other.statistics, sizeof(statistics));
  }
};

int check(bool is_low_precision, int threads, bool players_at_once) {
  Problem alone(is_low_precision), together(is_low_precision);
  for (int step = 0; step < 2; ++step) {
    alone.step(1, false);
    together.step(threads, players_at_once);
  }
  if (alone.same_bits(together)) return 0;
  std::printf("%d threads, low precision %d: the results differ\n", threads, is_low_precision);
  return 1;
}

int race() {
  struct Shared {
    std::atomic<int> threads{0};
    int64_t count = 0;
  } shared;
  parallel_for(
      1000, 4,
      [](void* opaque, int64_t begin, int64_t end) {
        Shared& shared = *static_cast<Shared*>(opaque);
        // one thread alone could have done all before another starts
        thread_local const bool is_first = shared.threads.fetch_add(1, std::memory_order_relaxed) == 0;
        while (is_first && shared.threads.load(std::memory_order_relaxed) < 2) std::this_thread::yield();
        for (int64_t i = begin; i < end; ++i) ++shared.count;
      },
      &shared);
  std::printf("counted %lld\n", static_cast<long long>(shared.count));
  return 0;
}

}  // namespace
}  // namespace sf

int main(int argc, char** argv) {
  using namespace sf;
  int next = 1;
  if (argc > 2 && !std::strcmp(argv[1], "openmp")) {
    if (!dlopen(argv[2], RTLD_LAZY | RTLD_GLOBAL)) {
      std::printf("%s\n", dlerror());
      return 1;
    }
    next = 3;
  }
  std::printf("threads: %s\n", thread_pool_name());
  if (argc > next && !std::strcmp(argv[next], "race")) return race();
  int failures = 0;
  for (bool is_low_precision : {false, true}) {
    for (int threads : {2, 7}) {
      for (bool players_at_once : {false, true}) failures += check(is_low_precision, threads, players_at_once);
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
