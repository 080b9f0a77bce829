// Decides whether a group moves on this step: with update_every = n it moves on every n-th step that it is part of. In
// between, its gradients are ignored, or summed up for the mean of all n.
#pragma once

#include "host_device.h"
#include "tables.h"

namespace sf {

// `waited` describes the steps since a parameter's group last moved in one number: twice their count, plus one if any
// of them added a gradient to grad_sum. stackelberg_fused/numerics/turns.py is the same in NumPy.
SF_HOST_DEVICE bool waits_for_turn(float waited, int64_t update_every) {
  return static_cast<int64_t>(waited) / 2 + 1 < update_every;
}

SF_HOST_DEVICE bool has_sum(float waited) { return static_cast<int64_t>(waited) % 2 != 0; }

struct Turn {
  bool waits;
  bool has_sum;       // there is a sum of earlier gradients
  float mean_weight;  // factor of that sum and the gradient; 0: gradients are not summed up

  SF_HOST_DEVICE_MEMBER bool sums() const { return mean_weight != 0.0f; }
  SF_HOST_DEVICE_MEMBER bool moves(bool has_grad) const { return !waits && (has_grad || (sums() && has_sum)); }
  SF_HOST_DEVICE_MEMBER bool adds(bool has_grad) const { return waits && sums() && has_grad; }
  SF_HOST_DEVICE_MEMBER float waited_after(float waited, bool has_grad) const {
    if (!waits) return 0.0f;
    return static_cast<float>(static_cast<int64_t>(waited) / 2 * 2 + 2 + (has_sum || adds(has_grad)));
  }
};

// The turn of record `index`, from the arguments of a step or of its statistics.
template <typename Args>
SF_HOST_DEVICE Turn turn_of(const Args& args, int64_t index, const Record& record) {
  Turn turn{};
  if (!args.takes_turns) return turn;
  const Row& row = args.rows[record.row];
  turn.mean_weight = row.mean_weight;
  turn.waits =
      args.groups ? waits_for_turn(args.waited[index], args.groups[record.row].update_every) : (row.turn & kWaits) != 0;
  turn.has_sum = args.groups ? has_sum(args.waited[index]) : (row.turn & kHasSum) != 0;
  return turn;
}

}  // namespace sf
