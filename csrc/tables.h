// The tables that every native backend reads: records, tiles, hyperparameter rows.
//
// The host builds them once (stackelberg_fused/layout/table.py, layout/rows.py) and the Triton kernels read the same
// bytes, so a new field goes here, into the NumPy dtypes of stackelberg_fused/native/tables.py and into
// triton_kernels/; tests/native/test_tables.py compares all three.
//
// A struct that Python packs or reads is written as a list of fields, FIELD(type, name). The list declares the struct,
// and bindings_common.h registers the offset of every field of it. Reserved words are not in the list.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sf {

#define SF_DECLARE_FIELD(type, name) type name;

// A value for the body (0) and one for the head (1).
template <typename T>
using PerPlayer = T[2];

// Elements per tile. A tile never straddles a parameter, so every hyperparameter is uniform within it.
constexpr int64_t kTileElements = 4096;

// One record per parameter. Addresses are those of device (or host) memory; 0 means absent, and a parameter whose
// gradient is absent is skipped.
#define SF_RECORD_FIELDS(FIELD)                                                                                \
  FIELD(int64_t, param)                                                                                        \
  FIELD(int64_t, grad)                                                                                         \
  FIELD(int64_t, exp_avg) /* momentum_buffer for SGD */                                                        \
  FIELD(int64_t, exp_avg_sq)                                                                                   \
  FIELD(int64_t, max_exp_avg_sq)                                                                               \
  FIELD(int64_t, numel)                                                                                        \
  FIELD(int64_t, row)           /* index into the hyperparameter rows */                                       \
  FIELD(int64_t, ema)           /* exponential average of the parameter */                                     \
  FIELD(int64_t, grad_sum)      /* sum of the gradients since the group last moved */                          \
  FIELD(int64_t, set)           /* 1 + index of the joint set that the parameter is projected onto; 0: none */ \
  FIELD(int64_t, row_length)    /* elements in each row of a simplex */                                        \
  FIELD(int64_t, row_stride)    /* elements from one of a row to the next */                                   \
  FIELD(int64_t, format)        /* how the numbers are stored: csrc/format.h */                                \
  FIELD(int64_t, grad_dtype)    /* Dtype */                                                                    \
  FIELD(int64_t, key)           /* seed of the parameter's random numbers */                                   \
  FIELD(int64_t, master)        /* stored beside the weight: remainder, compensation or float32 weight */      \
  FIELD(int64_t, exp_avg_scale) /* scales of 8-bit codes, one byte per block */                                \
  FIELD(int64_t, exp_avg_sq_scale)                                                                             \
  FIELD(int64_t, max_exp_avg_sq_scale)                                                                         \
  FIELD(int64_t, block_row) /* elements of a row, which no block of codes crosses; 0: all blocks are full */   \
  FIELD(int64_t, tiles)     /* that the parameter has */

struct Record {
  SF_RECORD_FIELDS(SF_DECLARE_FIELD)
  int64_t reserved[3];  // pads a record to three 64-byte cache lines
};

// A run of at most kTileElements elements of one parameter. Its elements lie side by side in the whole parameter too.
#define SF_TILE_FIELDS(FIELD)                                                                                 \
  FIELD(int32_t, record)                                                                                      \
  FIELD(int32_t, count)                                                                                       \
  FIELD(int64_t, offset) /* of its first element in the memory of the parameter, or of the part of it here */ \
  FIELD(int64_t, whole)  /* index of its first element in the whole parameter; random numbers depend on it */

struct Tile {
  SF_TILE_FIELDS(SF_DECLARE_FIELD)
};

// The options of an update rule, as FLAG(enumerator, name in Python, bit). A specialisation of a kernel fixes these
// bits at compile time; values such as rates are never fixed, so that a schedule never recompiles.
#define SF_RULE_FLAGS(FLAG)                                     \
  FLAG(kSgd, SGD, 1)           /* unset: Adam */                \
  FLAG(kAmsgrad, AMSGRAD, 2)   /* Adam only */                  \
  FLAG(kL2, L2, 4)             /* adds decay to the gradient */ \
  FLAG(kMomentum, MOMENTUM, 8) /* SGD only */                   \
  FLAG(kNesterov, NESTEROV, 16)                                 \
  FLAG(kEma, EMA, 32)           /* any rule */                  \
  FLAG(kCautious, CAUTIOUS, 64) /* AdamW only: a weight does not decay where the update makes it larger */

#define SF_DECLARE_FLAG(enumerator, name, bit) enumerator = bit,
enum Rule : int32_t { SF_RULE_FLAGS(SF_DECLARE_FLAG) };
#undef SF_DECLARE_FLAG

// The rule of a launch whose rows differ: the kernel reads each row's own.
constexpr int32_t kMixedRules = -1;

// Every rule that exists: the one list from which kernels are instantiated and dispatched.
#define SF_FOR_EACH_RULE(X) SF_FOR_EACH_RULE_WITH(X, 0) SF_FOR_EACH_RULE_WITH(X, kEma)
#define SF_FOR_EACH_RULE_WITH(X, more)   \
  X(0 | more)                            \
  X(kAmsgrad | more)                     \
  X(kL2 | more)                          \
  X(kAmsgrad | kL2 | more)               \
  X(kCautious | more)                    \
  X(kAmsgrad | kCautious | more)         \
  X(kSgd | more)                         \
  X(kSgd | kL2 | more)                   \
  X(kSgd | kMomentum | more)             \
  X(kSgd | kMomentum | kL2 | more)       \
  X(kSgd | kMomentum | kNesterov | more) \
  X(kSgd | kMomentum | kNesterov | kL2 | more)

// How numbers are stored: the parts of a record's `format` (csrc/format.h), and its `grad_dtype`.
enum Dtype : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };
enum StateKind : int32_t { kState32 = 0, kState16 = 1, kState8 = 2 };  // of moments: float32, bfloat16, codes
enum Master : int32_t { kNoMaster = 0, kStochastic = 1, kKahan = 2, kSplit16 = 3, kSplit8 = 4, kMaster32 = 5 };

// The state of a row whose group does not move on every step (csrc/turn.h).
enum TurnFlag : int32_t {
  kWaits = 1,   // the group does not move now
  kHasSum = 2,  // there is a sum of earlier gradients
};

// Scalars of one group at one step count, computed in float64 and rounded once.
#define SF_ROW_FIELDS(FIELD)                                                                                     \
  FIELD(int32_t, rule)                                                                                           \
  FIELD(float, grad_sign)    /* -1 to maximize */                                                                \
  FIELD(float, weight_decay) /* L2 coefficient, used with kL2 */                                                 \
  FIELD(float, param_decay)  /* 1 - lr * weight_decay when decoupled (AdamW), else 1 */                          \
  FIELD(float, lerp_weight)  /* of the first moment: 1 - beta1 below one half, else -beta1: see interpolate() */ \
  FIELD(float, beta2)                                                                                            \
  FIELD(float, one_minus_beta2)                                                                                  \
  FIELD(float, step_size) /* Adam: lr * sqrt(1 - beta2^t) / (1 - beta1^t); SGD: lr */                            \
  FIELD(float, eps)       /* Adam: eps * sqrt(1 - beta2^t) */                                                    \
  FIELD(float, momentum)                                                                                         \
  FIELD(float, one_minus_dampening) /* 1 on the step that creates the momentum buffer */                         \
  FIELD(float, ema_weight)          /* of the average of the parameters, as lerp_weight */                       \
  FIELD(float, mean_weight)         /* of a sum of gradients: 1 / update_every; 0: only the last one counts */   \
  FIELD(float, low)                 /* parameters are clamped to [low, high], which may be infinite */           \
  FIELD(float, high)                                                                                             \
  FIELD(int32_t, turn) /* TurnFlag */                                                                            \
  FIELD(int32_t, step) /* count of the current step, from 1; random numbers depend on it */

struct Row {
  SF_ROW_FIELDS(SF_DECLARE_FIELD)
  int32_t reserved[3];
};

// The float64 values from which the rows of a group are computed at every step.
#define SF_GROUP_FIELDS(FIELD)                                                                         \
  FIELD(double, lr)                                                                                    \
  FIELD(double, beta1) /* both 0 for SGD, whose rate is not corrected */                               \
  FIELD(double, beta2)                                                                                 \
  FIELD(double, eps)                                                                                   \
  FIELD(double, decay)       /* decoupled weight decay (AdamW), else 0 */                              \
  FIELD(int64_t, lr_address) /* of a tensor on the device that holds the rate, or 0: the rate is lr */ \
  FIELD(int64_t, lr_is_double)                                                                         \
  FIELD(int64_t, update_every) /* the group moves on every n-th step */

struct GroupScalars {
  SF_GROUP_FIELDS(SF_DECLARE_FIELD)
};

enum JointSetKind : int64_t { kBall = 1, kSimplex = 2 };

// A set that many elements share, so that projecting onto it takes a second launch after the update.
#define SF_JOINT_SET_FIELDS(FIELD)                                                     \
  FIELD(int64_t, kind)       /* JointSetKind */                                        \
  FIELD(double, size)        /* the radius of a ball; the sum of a row of a simplex */ \
  FIELD(double, smallest)    /* sums from here ... */                                  \
  FIELD(double, largest)     /* ... to here count as inside, and norms up to here */   \
  FIELD(int64_t, first_tile) /* of those in the set, in their table */                 \
  FIELD(int64_t, num_tiles)

struct JointSet {
  SF_JOINT_SET_FIELDS(SF_DECLARE_FIELD)
};

// The results of a launch of gradient statistics, read by the update and later by the user.
#define SF_GRADIENT_STATISTICS_FIELDS(FIELD)                                                                  \
  FIELD(PerPlayer<double>, sum_sq) /* of the gradients that move the player now, divided by the loss scale */ \
  FIELD(PerPlayer<double>, norm)   /* sqrt(sum_sq) */                                                         \
  FIELD(double, total_norm)        /* of both players */                                                      \
  FIELD(PerPlayer<float>, factor)  /* clips the player's gradients by multiplication */                       \
  FIELD(int32_t, blocks_done)      /* of the launch in progress; 0 between launches */

struct GradientStatistics {
  SF_GRADIENT_STATISTICS_FIELDS(SF_DECLARE_FIELD)
  int32_t reserved[3];
};

static_assert(sizeof(GradientStatistics) == 64 && sizeof(JointSet) == 48);
static_assert(sizeof(Record) == 192 && sizeof(Tile) == 24 && sizeof(Row) == 80 && sizeof(GroupScalars) == 64);

}  // namespace sf
