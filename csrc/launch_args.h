// The arguments of the three launches of a step: statistics, update, projection. Each covers a sub-range of the tiles
// of a table. The host packs them (stackelberg_fused/backends/launch_args.py) by the layouts of native/tables.py; the
// field lists work as those of tables.h.
#pragma once

#include "exact_sum.h"
#include "tables.h"

namespace sf {

// The first launch, where gradients are to be clipped: it sums up their squares.
#define SF_STATISTICS_ARGS_FIELDS(FIELD)                                                                          \
  FIELD(const Record*, records)                                                                                   \
  FIELD(const Tile*, tiles)                                                                                       \
  FIELD(int64_t, first_tile)                                                                                      \
  FIELD(int64_t, num_tiles)                                                                                       \
  FIELD(int64_t, first_head_tile)                                                                                 \
  FIELD(ExactSum*, sums)  /* [kSumCopies][2]; zero between launches */                                            \
  FIELD(int64_t*, digits) /* [2][kHostWords]: the sums of both players */                                         \
  FIELD(GradientStatistics*, statistics)                                                                          \
  FIELD(PerPlayer<double>, max_norm) /* infinity: no limit; where `joint`, max_norm[0] limits the norm of both */ \
  FIELD(int32_t, joint)                                                                                           \
  FIELD(int32_t, takes_turns)                                                                                     \
  FIELD(const float*, grad_scale) /* of the loss; null: 1 */                                                      \
  FIELD(const Row*, rows)         /* from here on as in StepArgs */                                               \
  FIELD(const GroupScalars*, groups)                                                                              \
  FIELD(const float*, waited)

struct StatisticsArgs {
  SF_STATISTICS_ARGS_FIELDS(SF_DECLARE_FIELD)
};

// The update. Where step counts live on the device, `rows` holds one row per group: each block completes a copy of its
// row by the count of its parameter, and the last block of a parameter to read the count advances it.
#define SF_STEP_ARGS_FIELDS(FIELD)                                                                                \
  FIELD(const Record*, records)                                                                                   \
  FIELD(const Tile*, tiles)                                                                                       \
  FIELD(const Row*, rows)                                                                                         \
  FIELD(int64_t, first_tile)                                                                                      \
  FIELD(int64_t, num_tiles)                                                                                       \
  FIELD(int64_t, first_head_tile)              /* tiles from here on are the head's */                            \
  FIELD(int32_t, rule)                         /* of every row in the range, or kMixedRules */                    \
  FIELD(int32_t, zero_grads)                   /* not 0: clears all gradients, also those that move nothing */    \
  FIELD(int32_t, takes_turns)                  /* not 0: some group does not move on every step */                \
  FIELD(int32_t, is_low_precision)             /* not 0: some record, state or gradient is not float32 */         \
  FIELD(const GradientStatistics*, statistics) /* clips the gradients; null: nothing is clipped */                \
  FIELD(const float*, grad_scale)              /* of the loss, and with it of the gradients; null: 1 */           \
  FIELD(const float*, found_inf)               /* not 0: nothing moves; null: 0 */                                \
  /* counts on the device */                                                                                      \
  FIELD(const GroupScalars*, groups) /* null: counts are on the host, and rows are complete */                    \
  FIELD(float*, steps)               /* [records]: steps taken */                                                 \
  FIELD(int32_t*, ready)             /* [records]: 0 where this step creates the momentum buffer */               \
  FIELD(float*, waited)              /* [records]: see csrc/turn.h */                                             \
  FIELD(int32_t*, arrived)           /* [records]: blocks that have read the count; 0 between launches */         \
  /* for the launch that projects onto joint sets */                                                              \
  FIELD(const JointSet*, sets)    /* null: there are none */                                                      \
  FIELD(ExactSum*, set_sums)      /* [sets][kSumCopies]: squares of the elements of a ball; 0 between launches */ \
  FIELD(int64_t*, set_digits)     /* [sets][kHostWords]: their sums */                                            \
  FIELD(double*, set_factors)     /* [sets]: scales the elements of a ball */                                     \
  FIELD(int32_t*, set_tiles_done) /* [sets]: tiles summed up so far; 0 between launches */                        \
  FIELD(int32_t*, moved)          /* [records]: 1 if this launch moved it */

struct StepArgs {
  SF_STEP_ARGS_FIELDS(SF_DECLARE_FIELD)
};

// The last launch, where there are joint sets. Pieces are tiles, but of a simplex's parameter `offset` counts rows.
#define SF_PROJECT_ARGS_FIELDS(FIELD) \
  FIELD(const Record*, records)       \
  FIELD(const Row*, rows)             \
  FIELD(const JointSet*, sets)        \
  FIELD(const Tile*, pieces)          \
  FIELD(int64_t, first_piece)         \
  FIELD(int64_t, num_pieces)          \
  FIELD(const double*, set_factors)   \
  FIELD(const int32_t*, moved)        \
  FIELD(const float*, found_inf)

struct ProjectArgs {
  SF_PROJECT_ARGS_FIELDS(SF_DECLARE_FIELD)
};

}  // namespace sf
