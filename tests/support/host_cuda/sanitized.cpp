// Runs csrc/cuda/*.cu through the shim and csrc/cpu/step.cpp, both under AddressSanitizer and
// UndefinedBehaviorSanitizer, and compares their results bit by bit: every rule and their mixture over ragged sizes,
// each buffer in an allocation of exactly its size and 0 to 3 floats off a 16-byte boundary; clipped, with turns, and
// with counts on the device. With an argument it makes a mistake on purpose, which a sanitizer has to catch.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/step.h"
#include "cuda/step.h"
#include "exact_sum.h"
#include "row.h"
#include "shim.h"
#include "tiles.h"

// access.cuh counts through the shim, which therefore comes first
#include "cuda/access.cuh"

// from selftest.cu, so that barriers and shuffles run under the sanitizers too
extern "C" void run_sum_blocks(const float* in, float* out, int count, int blocks, int threads);

namespace sf {

int check_low_precision();  // sanitized_low_precision.cpp

namespace {

constexpr int64_t kSizes[] = {0, 1, 15, 16, 17, 63, 4095, 4096, 4097, 10000};
constexpr int64_t Record::* kFields[] = {&Record::param,          &Record::grad, &Record::exp_avg, &Record::exp_avg_sq,
                                         &Record::max_exp_avg_sq, &Record::ema,  &Record::grad_sum};
constexpr int kBuffers = 7;
#define SF_ENTRY(rule) (rule),
constexpr int32_t kRules[] = {SF_FOR_EACH_RULE(SF_ENTRY)};

float pseudo_random(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / (1 << 23) - 1;
}

// Its last byte is the last byte of an allocation, so that the next one is poisoned.
class Buffer {
 public:
  Buffer(int64_t count, int shift, uint32_t seed, bool squares) : count_(count), memory_(new float[shift + count]) {
    data_ = memory_.get() + shift;
    for (int64_t i = 0; i < count; ++i) {
      const float x = pseudo_random(seed);
      data_[i] = squares ? x * x : x;
    }
  }
  int64_t address() const { return reinterpret_cast<int64_t>(data_); }
  bool same_bits(const Buffer& other) const { return !std::memcmp(data_, other.data_, count_ * sizeof(float)); }

 private:
  int64_t count_;
  std::unique_ptr<float[]> memory_;
  float* data_;
};

Row make_row(int32_t rule) {
  Row row{};
  row.rule = rule;
  row.grad_sign = rule & kL2 ? -1 : 1;
  row.weight_decay = 0.01f;
  row.param_decay = 0.999f;
  row.lerp_weight = rule & kAmsgrad ? -0.3f : 0.1f;
  row.beta2 = 0.999f;
  row.one_minus_beta2 = 0.001f;
  row.step_size = 0.003f;
  row.eps = 1e-8f;
  row.momentum = 0.9f;
  row.one_minus_dampening = 0.5f;
  row.ema_weight = rule & kAmsgrad ? 0.01f : -0.3f;
  row.low = rule & kMomentum ? -0.1f : -INFINITY;
  row.high = rule & kL2 ? 0.2f : INFINITY;
  return row;
}

// The tables of one launch as stackelberg_fused/layout/table.py builds them, with memory of their own.
struct Problem {
  std::vector<Buffer> buffers;
  std::vector<Record> records;
  std::vector<Tile> tiles;
  std::vector<Row> rows;
  StepArgs args{};

  // `shifted`: the buffer that is `shift` floats off the boundary, or kBuffers for all of them. `sums`: true if there
  // is a buffer for the sum of gradients.
  Problem(const std::vector<int32_t>& rules, int shifted, int shift, bool sums = false) {
    for (int32_t rule : rules) {
      rows.push_back(make_row(rule));
      for (int64_t size : kSizes) {
        Record record{};
        const bool used[kBuffers] = {true,
                                     true,
                                     !(rule & kSgd) || rule & kMomentum,
                                     !(rule & kSgd),
                                     !(rule & kSgd) && rule & kAmsgrad,
                                     (rule & kEma) != 0,
                                     sums};
        for (int b = 0; b < kBuffers; ++b) {
          const int off = shifted == b || shifted == kBuffers ? shift : 0;
          if (used[b]) {
            buffers.emplace_back(size, off, static_cast<uint32_t>(size * 8 + b), b == 3 || b == 4);
            record.*kFields[b] = buffers.back().address();
          }
        }
        if (size == 63) record.grad = 0;
        record.numel = size;
        record.row = static_cast<int64_t>(rows.size()) - 1;
        append(records, tiles, record);
      }
    }
    args.num_tiles = static_cast<int64_t>(tiles.size());
    args.rule = rules.size() == 1 ? rules[0] : kMixedRules;
    args.records = records.data();
    args.tiles = tiles.data();
    args.rows = rows.data();
    args.first_head_tile = args.num_tiles;
  }
};

// Runs both kernels on equal problems and compares the results.
int compare(Problem& cuda, Problem& cpu, const char* what, int shifted, int shift) {
  if (const char* error = launch_step(cuda.args, 0, 0)) {
    std::printf("launch failed: %s\n", error);
    return 1;
  }
  kernel_baseline.update_tiles(cpu.args, 0, cpu.args.num_tiles);
  for (size_t i = 0; i < cuda.buffers.size(); ++i) {
    if (!cuda.buffers[i].same_bits(cpu.buffers[i])) {
      std::printf("%s: rule %d, buffer %d off by %d: the results differ\n", what, cuda.args.rule, shifted, shift);
      return 1;
    }
  }
  return 0;
}

int check(const std::vector<int32_t>& rules, int shifted, int shift) {
  Problem cuda(rules, shifted, shift), cpu(rules, shifted, shift);
  return compare(cuda, cpu, "plain", shifted, shift);
}

// Compares the sums of both players with the CPU's, and the updates that are clipped by the factors that follow from
// them.
int check_clipped(const std::vector<int32_t>& rules, int shifted, int shift) {
  Problem cuda(rules, shifted, shift), cpu(rules, shifted, shift);
  const size_t tiles = cuda.tiles.size();
  std::vector<ExactSum> sums(2 * kSumCopies), cpu_sums(2);
  std::vector<int64_t> digits(2 * kHostWords), cpu_digits(2 * kHostWords);
  const auto statistics = std::make_unique<GradientStatistics>();
  StatisticsArgs args{};
  args.records = cuda.records.data();
  args.tiles = cuda.tiles.data();
  args.num_tiles = static_cast<int64_t>(tiles);
  args.first_head_tile = static_cast<int64_t>(tiles / 3);
  args.sums = sums.data();
  args.digits = digits.data();
  args.statistics = statistics.get();
  args.max_norm[0] = 1;
  args.max_norm[1] = 0.5;
  args.rows = cuda.rows.data();
  float found_inf = -1;
  args.found_inf = &found_inf;
  if (const char* error = launch_statistics(args, 0, 0)) {
    std::printf("launch failed: %s\n", error);
    return 1;
  }
  StatisticsArgs of_cpu = args;
  of_cpu.records = cpu.records.data();
  of_cpu.sums = cpu_sums.data();
  kernel_baseline.sum_tiles(of_cpu, 0, args.num_tiles);
  for (int player = 0; player < 2; ++player) {
    const double expected = conclude_sum(cpu_sums[player], cpu_digits.data() + player * kHostWords);
    if (statistics->sum_sq[player] != expected) {
      std::printf("player %d: sum %a, expected %a\n", player, statistics->sum_sq[player], expected);
      return 1;
    }
  }
  if (digits != cpu_digits) {
    std::printf("the digits differ\n");
    return 1;
  }
  if (found_inf != 0 || statistics->blocks_done || !(statistics->factor[0] < 1) || !(statistics->factor[1] < 1)) {
    std::printf("the last block did not conclude\n");
    return 1;
  }
  for (Problem* problem : {&cuda, &cpu}) {
    problem->args.first_head_tile = args.first_head_tile;
    problem->args.statistics = statistics.get();
  }
  return compare(cuda, cpu, "clipped", shifted, shift);
}

// Groups that move, wait or sum up gradients, as their rows say; gradients are cleared.
int check_turns(const std::vector<int32_t>& rules, int shifted, int shift, bool skips) {
  Problem cuda(rules, shifted, shift, true), cpu(rules, shifted, shift, true);
  const float found_inf = skips, scale = 8;
  for (Problem* problem : {&cuda, &cpu}) {
    for (size_t i = 0; i < problem->rows.size(); ++i) {
      problem->rows[i].turn = (i % 3 == 1 ? kWaits : 0) | (i % 2 ? kHasSum : 0);
      problem->rows[i].mean_weight = i % 4 < 2 ? 0.25f : 0.0f;
    }
    problem->args.takes_turns = 1;
    problem->args.zero_grads = 1;
    problem->args.found_inf = &found_inf;
    problem->args.grad_scale = &scale;
  }
  return compare(cuda, cpu, "turns", shifted, shift);
}

// Two steps with counts on the device, compared with rows that the host completes.
int check_counted(const std::vector<int32_t>& rules, int shifted, int shift) {
  Problem cuda(rules, shifted, shift), cpu(rules, shifted, shift);
  const double rate = 0.004;
  std::vector<GroupScalars> groups(cuda.rows.size());
  for (size_t i = 0; i < groups.size(); ++i) {
    groups[i] = {0.003, 0.9, 0.99, 1e-8, 0.1, 0, 0, 1};
    if (i % 2) groups[i].lr_address = reinterpret_cast<int64_t>(&rate), groups[i].lr_is_double = 1;
  }
  std::vector<float> steps(cuda.records.size(), 6.0f), waited(steps.size(), 0.0f);
  std::vector<int32_t> ready(steps.size(), 1), arrived(steps.size(), 0);
  cuda.args.groups = groups.data();
  cuda.args.steps = steps.data();
  cuda.args.ready = ready.data();
  cuda.args.waited = waited.data();
  cuda.args.arrived = arrived.data();
  int failures = 0;
  for (int64_t step = 7; step < 9; ++step) {
    for (size_t i = 0; i < groups.size(); ++i) {
      const BiasCorrections corrections = bias_corrections(groups[i].beta1, groups[i].beta2, step);
      complete_row(cpu.rows[i], groups[i], groups[i].lr_address ? rate : groups[i].lr, corrections, step);
    }
    failures += compare(cuda, cpu, "counted", shifted, shift);
    for (size_t i = 0; i < steps.size(); ++i) {
      const bool stepped = cuda.records[i].grad && cuda.records[i].numel;
      if (arrived[i] || steps[i] != (stepped ? static_cast<float>(step) : 6.0f)) {
        std::printf("parameter %zu: counted %g, %d arrived\n", i, steps[i], arrived[i]);
        ++failures;
      }
    }
  }
  return failures;
}

int check_barriers() {
  std::vector<float> ones(5 * 256, 1), sums(5);
  run_sum_blocks(ones.data(), sums.data(), static_cast<int>(ones.size()), 5, 256);
  const bool right = !cudaGetLastError() && sums == std::vector<float>(5, 256);
  if (!right) std::printf("a reduction is wrong\n");
  return !right;
}

__global__ void store_at(float* p) { store1(p, 1); }

// A sanitizer has to end the program before this returns.
int plant(const char* mistake) {
  Problem problem({0}, 0, 0);
  Record& last = problem.records.back();
  if (!std::strcmp(mistake, "overrun-cuda")) {
    ++problem.tiles.back().count;
    launch_step(problem.args, 0, 0);
  } else if (!std::strcmp(mistake, "overrun-cpu")) {
    ++problem.tiles.back().count;
    kernel_baseline.update_tiles(problem.args, 0, problem.args.num_tiles);
  } else if (!std::strcmp(mistake, "overrun-write")) {
    float* past_the_end = reinterpret_cast<float*>(last.param) + last.numel;
    SF_LAUNCH((store_at), 1, 1, 0, past_the_end);
  } else if (!std::strcmp(mistake, "misaligned")) {
    last.exp_avg -= 2;
    kernel_baseline.update_tiles(problem.args, 0, problem.args.num_tiles);
  }
  std::printf("not caught\n");
  return 0;
}

}  // namespace
}  // namespace sf

int main(int argc, char** argv) {
  using namespace sf;
  if (argc > 1) return plant(argv[1]);
  int failures = check_barriers() + check_low_precision();
  const std::vector<int32_t> all(std::begin(kRules), std::end(kRules));
  for (int shift = 0; shift < 4; ++shift) {
    for (int shifted = 0; shifted <= kBuffers; ++shifted) {
      if (shift == 0 && shifted != kBuffers) continue;  // nothing is shifted
      failures += check(all, shifted, shift);
      if (shifted != kBuffers) continue;
      if (shift == 1) {
        for (int32_t rule : all) failures += check({rule}, shifted, shift);
      }
      for (bool skips : {false, true}) failures += check_turns(all, shifted, shift, skips);
      failures += check_clipped(all, shifted, shift);
      failures += check_counted(all, shifted, shift);
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
