// The tables every native backend reads: records, tiles, hyperparameter rows.
//
// The host builds them once (stackelberg_fused/layout.py, hyperparameters.py) and the Triton kernel reads the same
// bytes, so a field is added here, in the NumPy dtypes of stackelberg_fused/tables.py, and in triton_kernels/;
// tests/test_tables.py compares all three.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sf {

// Elements per tile. A tile never straddles a parameter, so every hyperparameter is uniform within it.
constexpr int64_t kTileElements = 4096;

// One row per parameter. Addresses are those of device (or host) memory; 0 means absent, and a parameter whose
// gradient is absent is skipped.
struct Record {
  int64_t param;
  int64_t grad;
  int64_t exp_avg;  // momentum_buffer for SGD
  int64_t exp_avg_sq;
  int64_t max_exp_avg_sq;
  int64_t numel;
  int64_t row;       // index into the hyperparameter rows
  int64_t reserved;  // pads a record to one 64-byte cache line
};

// A run of at most kTileElements elements of one parameter, starting `offset` elements into it.
struct Tile {
  int64_t record;
  int64_t offset;
};

// What a row's update does beyond its scalars. A specialisation of a kernel fixes these bits at compile time; values
// such as rates never are, so that a schedule never recompiles.
enum Rule : int32_t {
  kSgd = 1,       // unset: Adam
  kAmsgrad = 2,   // Adam only
  kL2 = 4,        // weight decay added to the gradient
  kMomentum = 8,  // SGD only
  kNesterov = 16,
  kMixedRules = -1,  // a launch whose rows differ: the kernel reads each row's rule
};

// Scalars of one group at one step count, computed in float64 and rounded once.
struct Row {
  int32_t rule;
  float grad_sign;     // -1 to maximize
  float weight_decay;  // L2 coefficient, used with kL2
  float param_decay;   // 1 - lr * weight_decay when decoupled (AdamW), else 1
  float lerp_weight;   // of the first moment: 1 - beta1 below one half, else -beta1, from the gradient's end
  float beta2;
  float one_minus_beta2;
  float step_size;  // Adam: lr * sqrt(1 - beta2^t) / (1 - beta1^t); SGD: lr
  float eps;        // Adam: eps * sqrt(1 - beta2^t)
  float momentum;
  float one_minus_dampening;  // 1 on the step that creates the momentum buffer
  float reserved[5];
};

// What the rows of a group are computed from at every step, in double precision.
struct GroupScalars {
  double lr;
  double beta1;  // both 0 for SGD: its rate is not corrected
  double beta2;
  double eps;
  double decay;        // decoupled weight decay (AdamW), else 0
  int64_t lr_address;  // of a tensor on the device that holds the rate instead, or 0
  int64_t lr_is_double;
  int64_t reserved;
};

// What a launch of gradient statistics leaves where the update, and later the user, finds it. "Player": 0 body, 1 head.
struct Signals {
  double sum_sq[2];     // of each player's gradients as they are
  double norm[2];       // sqrt(sum_sq)
  double total_norm;    // of both players
  float factor[2];      // what each player's gradients are multiplied by
  int32_t blocks_done;  // of the launch in progress; 0 between launches
  int32_t reserved[3];
};

static_assert(sizeof(Signals) == 64);
static_assert(sizeof(Record) == 64 && sizeof(Tile) == 16 && sizeof(Row) == 64 && sizeof(GroupScalars) == 64);

// Every rule that exists: the one list from which kernels are instantiated and dispatched.
#define SF_FOR_EACH_RULE(X)       \
  X(0)                            \
  X(kAmsgrad)                     \
  X(kL2)                          \
  X(kAmsgrad | kL2)               \
  X(kSgd)                         \
  X(kSgd | kL2)                   \
  X(kSgd | kMomentum)             \
  X(kSgd | kMomentum | kL2)       \
  X(kSgd | kMomentum | kNesterov) \
  X(kSgd | kMomentum | kNesterov | kL2)

// One launch: the tables, and the sub-range of tiles to update. `rule` is the rule of every row in the range, or
// kMixedRules.
struct StepArgs {
  const Record* records;
  const Tile* tiles;
  const Row* rows;
  int64_t first_tile;
  int64_t num_tiles;
  int64_t first_head_tile;  // tiles from here on are the head's
  int32_t rule;
  // What the gradients are multiplied by: the factors of a launch of statistics, else one over the scale of the loss,
  // else 1.
  const Signals* signals;
  const float* grad_scale;
  const float* found_inf;  // not 0: nothing moves
  // Where step counts live on the device, `rows` holds one row per group, of which each block completes a copy by the
  // count of its parameter, and the last block of a parameter to have read the count advances it.
  const GroupScalars* groups;  // null: rows are complete
  float* steps;                // [records]: steps taken
  int32_t* ready;              // [records]: 0 where the coming step creates the momentum buffer
  int32_t* arrived;            // [records]: blocks of this launch that have read the count; 0 between launches
};

// The launch before it, where gradients are to be clipped: sums over the same sub-range of tiles.
struct StatisticsArgs {
  const Record* records;
  const Tile* tiles;
  int64_t first_tile;
  int64_t num_tiles;
  int64_t first_head_tile;
  double* tile_sums;  // one per tile of the table
  Signals* signals;
  double
      max_norm[2];  // of each player's gradients, or, where `joint`, max_norm[0] of both together; infinity: no limit
  int32_t joint;
  const float* grad_scale;  // of the loss, or null: 1
};

}  // namespace sf
