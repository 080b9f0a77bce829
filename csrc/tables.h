// The tables every native backend reads: records, tiles, hyperparameter rows.
//
// The host builds them once (stackelberg_fused/layout/table.py, layout/rows.py) and the Triton kernel reads the
// same bytes, so a field is added here, in the NumPy dtypes of stackelberg_fused/native/tables.py, and in
// triton_kernels/; tests/native/test_tables.py compares all three.
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
  int64_t row;  // index into the hyperparameter rows
  int64_t ema;
  int64_t grad_sum;       // of the gradients that wait for their group's turn
  int64_t set;            // 1 + index of the joint set that it is projected onto; 0: none
  int64_t row_length;     // of a simplex's rows, and
  int64_t row_stride;     // how far apart their elements are, and
  int64_t row_count;      // how many there are
  int64_t format;         // how its numbers are stored: csrc/format.h
  int64_t grad_dtype;     // Dtype
  int64_t key;            // of its random numbers
  int64_t master;         // what is stored beside its weight: remainder, compensation or float32 weight
  int64_t exp_avg_scale;  // of 8-bit codes, one per block
  int64_t exp_avg_sq_scale;
  int64_t max_exp_avg_sq_scale;
  int64_t reserved[4];  // pads a record to three 64-byte cache lines
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
  kEma = 32,         // any rule
  kMixedRules = -1,  // a launch whose rows differ: the kernel reads each row's rule
};

// How numbers are stored: fields of a record's `format` (csrc/format.h), and its `grad_dtype`.
enum Dtype : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
enum StateKind : int32_t { kState32 = 0, kState16 = 1, kState8 = 2 };  // of moments: float32, bfloat16, codes
enum Master : int32_t { kNoMaster = 0, kStochastic = 1, kKahan = 2, kSplit16 = 3, kSplit8 = 4, kMaster32 = 5 };

// Where a row whose group does not move on every step stands (csrc/turn.h).
enum TurnFlag : int32_t {
  kWaits = 1,   // it is not this group's turn
  kHasSum = 2,  // there is a sum of earlier gradients
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
  float ema_weight;           // of the average of the parameters, as lerp_weight
  float mean_weight;          // of a sum of gradients: 1 / update_every, or 0 where only the last one counts
  float low;                  // what parameters are kept at or above, and
  float high;                 // at or below: infinities where nothing is asked for
  int32_t turn;               // TurnFlag
  int32_t step;               // the count of the step at hand, from 1; what random numbers depend on
  int32_t reserved[3];
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
  int64_t update_every;  // a group moves on every so many steps
};

enum JointSetKind : int64_t { kBall = 1, kSimplex = 2 };

// A set that many elements share, so that projecting onto it takes a launch of its own, after that of the update.
struct JointSet {
  int64_t kind;
  double size;         // the radius of a ball; what a row of a simplex adds up to
  double smallest;     // sums from here on, and
  double largest;      // norms or sums up to here, count as inside
  int64_t first_tile;  // of the group, in its table
  int64_t num_tiles;
};

// What a launch of gradient statistics leaves where the update, and later the user, finds it. "Player": 0 body, 1 head.
struct GradientStatistics {
  double sum_sq[2];     // of the gradients that move each player now, the scale of the loss taken out
  double norm[2];       // sqrt(sum_sq)
  double total_norm;    // of both players
  float factor[2];      // what each player's gradients are multiplied by to clip them
  int32_t blocks_done;  // of the launch in progress; 0 between launches
  int32_t reserved[3];
};

static_assert(sizeof(GradientStatistics) == 64 && sizeof(JointSet) == 48);
static_assert(sizeof(Record) == 192 && sizeof(Tile) == 16 && sizeof(Row) == 80 && sizeof(GroupScalars) == 64);

// Every rule that exists: the one list from which kernels are instantiated and dispatched.
#define SF_FOR_EACH_RULE(X) SF_FOR_EACH_RULE_WITH(X, 0) SF_FOR_EACH_RULE_WITH(X, kEma)
#define SF_FOR_EACH_RULE_WITH(X, more)   \
  X(0 | more)                            \
  X(kAmsgrad | more)                     \
  X(kL2 | more)                          \
  X(kAmsgrad | kL2 | more)               \
  X(kSgd | more)                         \
  X(kSgd | kL2 | more)                   \
  X(kSgd | kMomentum | more)             \
  X(kSgd | kMomentum | kL2 | more)       \
  X(kSgd | kMomentum | kNesterov | more) \
  X(kSgd | kMomentum | kNesterov | kL2 | more)

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
  int32_t zero_grads;                    // not 0: gradients are zero afterwards, also those that moved nothing
  int32_t takes_turns;                   // not 0: some group does not move on every step
  int32_t is_low_precision;              // not 0: some record is not float32 with float32 state and gradient
  const GradientStatistics* statistics;  // of a launch of statistics, whose factors clip the gradients, or null
  const float* grad_scale;               // what the loss, and with it the gradients, were multiplied by, or null: 1
  const float* found_inf;                // not 0: nothing moves
  // Where step counts live on the device, `rows` holds one row per group, of which each block completes a copy by the
  // count of its parameter, and the last block of a parameter to have read the count advances it.
  const GroupScalars* groups;  // null: rows are complete
  float* steps;                // [records]: steps taken
  int32_t* ready;              // [records]: 0 where the coming step creates the momentum buffer
  float* waited;               // [records]: see csrc/turn.h
  int32_t* arrived;            // [records]: blocks of this launch that have read the count; 0 between launches
  // Where there are joint sets, for the launch that projects onto them:
  const JointSet* sets;     // null: there are none
  double* set_sums;         // [tiles]: squares of the updated elements of those in a ball
  double* set_factors;      // [sets]: what elements of a ball are to be multiplied by
  int32_t* set_tiles_done;  // [sets]: tiles of a ball that this launch has summed up; 0 between launches
  int32_t* moved;           // [records]: whether this launch moved it
};

// The launch after it, where there are joint sets. Pieces are like tiles, but of a simplex's parameter `offset` is a
// row.
struct ProjectArgs {
  const Record* records;
  const Row* rows;
  const JointSet* sets;
  const Tile* pieces;
  int64_t first_piece;
  int64_t num_pieces;
  const double* set_sums;
  double* set_factors;
  const int32_t* moved;
  const float* found_inf;
};

// The launch before it, where gradients are to be clipped: sums over the same sub-range of tiles.
struct StatisticsArgs {
  const Record* records;
  const Tile* tiles;
  int64_t first_tile;
  int64_t num_tiles;
  int64_t first_head_tile;
  double* tile_sums;  // one per tile of the table
  GradientStatistics* statistics;
  double
      max_norm[2];  // of each player's gradients, or, where `joint`, max_norm[0] of both together; infinity: no limit
  int32_t joint;
  int32_t takes_turns;
  const float* grad_scale;  // of the loss, or null: 1
  const Row* rows;          // from here on as in StepArgs
  const GroupScalars* groups;
  const float* waited;
};

}  // namespace sf
