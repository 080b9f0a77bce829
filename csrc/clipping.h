// Norms of gradients and the factors that clip them, which follow from the sums of squares of both players: the same
// bits on every backend.
#pragma once

#include "exact_sum.h"
#include "host_device.h"
#include "launch_args.h"
#include "tables.h"

namespace sf {

// The factor of torch.nn.utils.clip_grad_norm_ in double: 1 where nothing is clipped, NaN where the norm is NaN.
SF_HOST_DEVICE double clip_factor(double norm, double max_norm) {
  if (max_norm == kNoLimit) return 1.0;
  const double factor = max_norm / (norm + 1e-6);
  return factor < 1.0 || factor != factor ? factor : 1.0;
}

// Writes all statistics that follow from the two sums of squares.
SF_HOST_DEVICE void conclude(const StatisticsArgs& args, double body, double head) {
  GradientStatistics& s = *args.statistics;
  s.sum_sq[0] = body;
  s.sum_sq[1] = head;
  s.norm[0] = root(body);
  s.norm[1] = root(head);
  s.total_norm = root(body + head);
  for (int player = 0; player < 2; ++player) {
    const double norm = args.joint ? s.total_norm : s.norm[player];
    s.factor[player] = static_cast<float>(clip_factor(norm, args.max_norm[player]));
  }
}

// The factor that removes the scale of the loss from a gradient.
SF_HOST_DEVICE float unscaling(const float* grad_scale) { return grad_scale ? 1.0f / *grad_scale : 1.0f; }

// The player, 0 or 1, that a tile belongs to.
template <typename Args>
SF_HOST_DEVICE int player_of(const Args& args, int64_t tile) {
  return tile >= args.first_head_tile;
}

// The factor that clips the gradients of a tile.
SF_HOST_DEVICE float clipping(const StepArgs& args, int64_t tile) {
  return args.statistics ? args.statistics->factor[player_of(args, tile)] : 1.0f;
}

}  // namespace sf
