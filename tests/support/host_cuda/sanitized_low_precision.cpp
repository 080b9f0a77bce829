// The part of sanitized.cpp for low precision: every format over ragged sizes, each buffer in an allocation of exactly
// its bytes, on a 16-byte boundary or one element off it. Both kernels have to give the same bits.
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "codec.h"
#include "cpu/step.h"
#include "cuda/step.h"
#include "format.h"
#include "shim.h"
#include "tables.h"
#include "tiles.h"

namespace sf {
namespace {

// A parameter, or a part of one that begins at element `start` of the whole. Where its rows have no multiple of kBlock
// elements, and are several, no block of codes crosses them.
struct Part {
  int64_t size, row, start;
};
constexpr Part kParts[] = {{0, 0, 0},     {1, 0, 0},          {31, 0, 0},    {33, 0, 0},    {4095, 0, 0},
                           {4096, 0, 0},  {4130, 0, 0},       {9000, 0, 96}, {4 * 9, 9, 0}, {40 * 147, 147, 4000},
                           {8192, 0, 64}, {2 * 5000, 5000, 7}};
constexpr int32_t kRules[] = {0, kAmsgrad | kL2 | kEma, kSgd | kMomentum | kNesterov, kSgd};

// Bytes that end where an allocation does, so that the next one is poisoned.
class Bytes {
 public:
  Bytes(int64_t count, int64_t width, bool shifted)
      : size_(count * width), memory_(new unsigned char[size_ + (shifted ? width : 0)]()) {
    data_ = memory_.get() + (shifted ? width : 0);
  }
  int64_t address() const { return reinterpret_cast<int64_t>(data_); }
  unsigned char* data() { return data_; }
  bool same(const Bytes& other) const { return !std::memcmp(data_, other.data_, size_); }

 private:
  int64_t size_;
  std::unique_ptr<unsigned char[]> memory_;
  unsigned char* data_;
};

float value(int64_t i, int64_t seed) {
  const uint32_t mixed = static_cast<uint32_t>(i * 2654435761u + seed * 40503u);
  return (static_cast<float>(mixed >> 8) / (1 << 23) - 1) * (mixed % 7 ? 1.0f : 1e-6f);
}

struct LowPrecisionProblem {
  std::vector<Bytes> buffers;
  std::vector<Record> records;
  std::vector<Tile> tiles;
  std::vector<Row> rows;
  StepArgs args{};

  LowPrecisionProblem(const Format& format, int32_t grad_dtype, bool shifted) {
    const auto add = [&](int64_t count, int64_t width) {
      buffers.emplace_back(count, width, shifted && width > 1);
      return buffers.back().address();
    };
    for (const int32_t rule : kRules) {
      Row row{};
      row.rule = rule, row.grad_sign = 1, row.weight_decay = 0.01f, row.param_decay = 0.999f, row.lerp_weight = 0.1f;
      row.beta2 = 0.9f, row.one_minus_beta2 = 0.1f, row.step_size = 0.01f, row.eps = 1e-8f, row.momentum = 0.9f;
      row.one_minus_dampening = 1, row.ema_weight = 0.1f, row.low = -0.7f, row.high = 0.9f, row.step = 3;
      rows.push_back(row);
      for (const auto& [size, block_row, start] : kParts) {
        Record record{};
        record.numel = size, record.row = static_cast<int64_t>(rows.size()) - 1, record.key = size + 77;
        record.format = format.param | format.state << 2 | format.master << 4;
        record.grad_dtype = grad_dtype;
        record.block_row = format.state == kState8 ? block_row : 0;
        const int64_t row_length = record.block_row ? record.block_row : size;
        const int64_t blocks = size ? size / row_length * ((row_length + kBlock - 1) / kBlock) : 0;
        record.param = add(size, bytes_of(format.param));
        record.grad = add(size, bytes_of(grad_dtype));
        for (int64_t i = 0; i < size; ++i) {
          put(format.param, record.param, i, value(i, size));
          put(grad_dtype, record.grad, i, value(i, size + 1));
        }
        const int64_t moment = format.state == kState32 ? 4 : format.state == kState16 ? 2 : 1;
        const auto moments = [&](int64_t* address, int64_t* scale) {
          *address = add(size, moment);
          if (format.state == kState8) *scale = add(blocks, 1);
        };
        if (!(rule & kSgd) || rule & kMomentum) moments(&record.exp_avg, &record.exp_avg_scale);
        if (!(rule & kSgd)) moments(&record.exp_avg_sq, &record.exp_avg_sq_scale);
        if (!(rule & kSgd) && rule & kAmsgrad) moments(&record.max_exp_avg_sq, &record.max_exp_avg_sq_scale);
        if (rule & kEma) record.ema = add(size, 4);
        const int64_t beside[] = {0, 0, 2, 2, 1, 4};
        if (beside[format.master]) record.master = add(size, beside[format.master]);
        append(records, tiles, record, start);
      }
    }
    args.num_tiles = static_cast<int64_t>(tiles.size());
    args.rule = kMixedRules, args.is_low_precision = 1, args.zero_grads = shifted;
    args.records = records.data(), args.tiles = tiles.data(), args.rows = rows.data();
    args.first_head_tile = args.num_tiles;
  }

  static void put(int64_t dtype, int64_t address, int64_t i, float x) {
    if (dtype == kFloat32) {
      reinterpret_cast<float*>(address)[i] = x;
    } else {
      reinterpret_cast<uint16_t*>(address)[i] = dtype == kBfloat16 ? to_bfloat16(x) : to_float16(x);
    }
  }
};

int check(const Format& format, int32_t grad_dtype, bool shifted) {
  LowPrecisionProblem cuda(format, grad_dtype, shifted), cpu(format, grad_dtype, shifted);
  for (int step = 0; step < 2; ++step) {
    if (const char* error = launch_step(cuda.args, 0, 0)) {
      std::printf("launch failed: %s\n", error);
      return 1;
    }
    kernel_baseline.update_tiles(cpu.args, 0, cpu.args.num_tiles);
  }
  for (size_t i = 0; i < cuda.buffers.size(); ++i) {
    if (!cuda.buffers[i].same(cpu.buffers[i])) {
      std::printf("format %d %d %d, gradient %d: buffer %zu differs\n", format.param, format.state, format.master,
                  grad_dtype, i);
      return 1;
    }
  }
  return 0;
}

}  // namespace

int check_low_precision() {
  int failures = 0;
  for (int32_t param : {kFloat32, kBfloat16, kFloat16}) {
    for (int32_t state : {kState32, kState16, kState8}) {
      for (int32_t master : {kNoMaster, kStochastic, kKahan, kSplit16, kSplit8, kMaster32}) {
        const bool is_split = master == kSplit16 || master == kSplit8;
        if ((param == kFloat32 && master != kNoMaster) || (param == kFloat16 && is_split)) continue;
        const Format format = {param, state, master};
        // gradients of the parameter's own dtype, so that full tiles of some schemes take their own path
        failures += check(format, param, false);
        const int32_t other = (state + master) % 3;
        if (other != param) failures += check(format, other, false);
        failures += check(format, other, true);
      }
    }
  }
  return failures;
}

}  // namespace sf
