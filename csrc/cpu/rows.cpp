// Runs at every step on the host, unless step counts live on the device.
#include "cpu/rows.h"

#include "row.h"
#include "turn.h"

namespace sf {

int64_t find_bad_count(const RowTable& t) {
  for (int64_t i = 0; i < t.num_slots; ++i) {
    // written so that NaN is bad
    if (!(t.step_counts[i] >= 0.0f && t.step_counts[i] < kLargestCount)) return i;
    if (!(t.waited[i] >= 0.0f && t.waited[i] < kLargestCount)) return i;
  }
  return -1;
}

bool update_rows(const RowTable& t) {
  for (int64_t i = 0; i < t.num_slots; ++i) {
    const int64_t row = t.slot_row[i];
    const int64_t like = t.representative[row];
    if (t.step_counts[i] != t.step_counts[like] || t.momentum_ready[i] != t.row_ready[row] ||
        t.waited[i] != t.waited[like]) {
      return false;
    }
  }
  // most groups share their betas, and most rows their step count
  double beta1 = -1.0, beta2 = -1.0;
  int64_t step = 0;
  BiasCorrections corrections{};
  for (int64_t i = 0; i < t.num_rows; ++i) {
    const GroupScalars& group = t.groups[t.row_group[i]];
    const int64_t next = static_cast<int64_t>(t.step_counts[t.representative[i]]) + 1;
    if (group.beta1 != beta1 || group.beta2 != beta2 || next != step) {
      beta1 = group.beta1, beta2 = group.beta2, step = next;
      corrections = bias_corrections(beta1, beta2, step);
    }
    complete_row(t.rows[i], group, group.lr, corrections, step);
    const float waited = t.waited[t.representative[i]];
    t.rows[i].turn = (waits_for_turn(waited, group.update_every) ? kWaits : 0) | (has_sum(waited) ? kHasSum : 0);
  }
  return true;
}

}  // namespace sf
