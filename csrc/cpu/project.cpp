// A ball has one factor for all of its tiles, which the launch of the update leaves; so pieces are independent.
#include "cpu/project.h"

#include "cpu/parallel.h"
#include "projection.h"
#include "update_rule.h"

namespace sf {
namespace {

const JointSet& set_of(const ProjectArgs& args, const Record& record) { return args.sets[record.set - 1]; }

void update_average(const Record& record, const Row& row, int64_t index) {
  if (!record.ema) return;
  ema_update(row, reinterpret_cast<const float*>(record.param)[index], reinterpret_cast<float*>(record.ema)[index]);
}

void project_tile(const ProjectArgs& args, const Tile& piece, const Record& record) {
  const double factor = args.set_factors[record.set - 1];
  const bool averages = record.ema && args.moved[piece.record];
  if (factor == 1.0 && !averages) return;
  float* param = reinterpret_cast<float*>(record.param);
  for (int64_t i = piece.offset; i < piece.offset + piece.count; ++i) {
    param[i] = on_ball(param[i], factor);
    if (averages) update_average(record, args.rows[record.row], i);
  }
}

void project_row(const JointSet& set, const Record& record, float* row) {
  const int64_t length = record.row_length, stride = record.row_stride;
  const auto at = [&](int64_t j) { return static_cast<double>(row[j * stride]); };
  double smallest = kNoLimit, largest = -kNoLimit;
  for (int64_t j = 0; j < length; ++j) {
    smallest = at(j) < smallest ? at(j) : smallest;
    largest = at(j) > largest ? at(j) : largest;
  }
  if (row_stays(set, smallest, sum_in_lanes(length, at))) return;
  Threshold threshold(set.size);
  while (true) {
    double count = 0;
    const double sum = sum_in_lanes(length, [&](int64_t j) {
      const double relative = at(j) - largest;
      const bool is_above = relative > threshold.value;
      count += is_above;
      return is_above ? relative : 0.0;
    });
    if (!threshold.raise(set.size, count, sum)) break;
  }
  const double sum = sum_in_lanes(length, [&](int64_t j) { return above(at(j) - largest, threshold.value); });
  const double scale = set.size / sum;
  for (int64_t j = 0; j < length; ++j) {
    row[j * stride] = toward_zero(above(at(j) - largest, threshold.value) * scale);
  }
}

void project_rows(const ProjectArgs& args, const Tile& piece, const Record& record) {
  if (!args.moved[piece.record]) return;
  for (int64_t index = piece.offset; index < piece.offset + piece.count; ++index) {
    const int64_t start = row_start(record, index);
    project_row(set_of(args, record), record, reinterpret_cast<float*>(record.param) + start);
    for (int64_t j = 0; j < record.row_length; ++j) {
      update_average(record, args.rows[record.row], start + j * record.row_stride);
    }
  }
}

}  // namespace

void conclude_balls(const StepArgs& args) {
  const int64_t end = args.first_tile + args.num_tiles;
  for (int64_t t = args.first_tile; t < end;) {
    const int64_t index = args.records[args.tiles[t].record].set - 1;
    if (index < 0 || args.sets[index].kind != kBall) {
      ++t;
      continue;
    }
    const JointSet& set = args.sets[index];
    bool has_moved = false;
    for (int64_t i = 0; i < set.num_tiles; ++i) has_moved |= args.moved[args.tiles[t + i].record] != 0;
    ExactSum& sum = args.set_sums[index * kSumCopies];
    const double rounded = conclude_sum(sum, args.set_digits + index * kHostWords);
    args.set_factors[index] = has_moved ? ball_factor(set, rounded) : 1.0;
    sum = {};
    t += set.num_tiles;
  }
}

void project(const ProjectArgs& args, int threads) {
  if (args.found_inf && *args.found_inf != 0.0f) return;
  parallel_for(
      args.num_pieces, threads,
      [](void* opaque, int64_t begin, int64_t end) {
        const auto& args = *static_cast<const ProjectArgs*>(opaque);
        for (int64_t i = args.first_piece + begin; i < args.first_piece + end; ++i) {
          const Tile& piece = args.pieces[i];
          const Record& record = args.records[piece.record];
          (set_of(args, record).kind == kBall ? project_tile : project_rows)(args, piece, record);
        }
      },
      const_cast<ProjectArgs*>(&args));
}

}  // namespace sf
