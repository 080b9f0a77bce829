// Sums of squares of gradients, and the norms and clip factors that follow from them: the same bits on every backend
// and in every run. docs/numerics.md draws the order of the additions; stackelberg_fused/numerics/summation.py is the
// same in PyTorch.
//
// The square of a float32 is exact in double, and a sum of such squares neither overflows nor loses small ones, so only
// the order of the additions matters. It is the same within a tile and over tiles: each of kLanes lanes adds up every
// kLanes-th entry, then the upper half of the lanes is added to the lower half until one lane is left.
#pragma once

#include "host_device.h"
#include "launch_args.h"
#include "tables.h"

namespace sf {

// Within a tile an entry is 4 consecutive elements, the 128 bits that a thread loads at once. Element 4 * (kLanes * k +
// lane) + j is added to part j of the lane, in the order of k; then the parts are added as (0 + 2) + (1 + 3).
constexpr int kLanes = 256;
constexpr int kLaneEntries = kTileElements / (4 * kLanes);
static_assert(kTileElements % (4 * kLanes) == 0);

constexpr double kNoLimit = __builtin_huge_val();

SF_HOST_DEVICE double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

SF_HOST_DEVICE double add_parts(const double part[4]) { return (part[0] + part[2]) + (part[1] + part[3]); }

// A sum of squares of float32 is finite where they all are: it cannot overflow.
SF_HOST_DEVICE bool is_finite(double sum) { return sum - sum == 0; }

#if !defined(__CUDA_ARCH__)
// Adds the upper half of the lanes to the lower half until one is left; `width` is a power of two.
SF_HOST_DEVICE double fold_lanes(double* lanes, int width = kLanes) {
  for (int half = width / 2; half; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// The sum of at(0) to at(count - 1). Lanes without an entry would add zeros, and are left out.
template <typename At>
SF_HOST_DEVICE double sum_in_lanes(int64_t count, At at) {
  double lanes[kLanes];
  int width = 1;
  while (width < kLanes && width < count) width *= 2;
  for (int lane = 0; lane < width; ++lane) lanes[lane] = 0;
  for (int64_t i = 0; i < count; ++i) lanes[i & (kLanes - 1)] += at(i);
  return fold_lanes(lanes, width);
}
#endif

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
  if (args.found_inf) *args.found_inf = is_finite(body + head) ? 0.0f : 1.0f;
}

// The factor that removes the scale of the loss from a gradient.
SF_HOST_DEVICE float unscaling(const float* grad_scale) { return grad_scale ? 1.0f / *grad_scale : 1.0f; }

// The same for statistics. Where infinities are looked for, a gradient that waits is multiplied by 0: it adds nothing
// to the norms unless it is not finite, when the product is NaN.
SF_HOST_DEVICE float unscaling(const StatisticsArgs& args, bool moves) {
  return moves ? unscaling(args.grad_scale) : 0.0f;
}

// Tells whether the statistics read a gradient: one that moves a parameter now, or may be infinite.
SF_HOST_DEVICE bool is_read(const StatisticsArgs& args, bool has_grad, bool moves) {
  return moves || (args.found_inf && has_grad);
}

// The factor that clips the gradients of a tile.
SF_HOST_DEVICE float clipping(const StepArgs& args, int64_t tile) {
  return args.statistics ? args.statistics->factor[tile >= args.first_head_tile] : 1.0f;
}

// The tiles [begin, end) of the launch that belong to a player, 0 or 1.
SF_HOST_DEVICE void player_tiles(const StatisticsArgs& args, int player, int64_t& begin, int64_t& end) {
  const int64_t last = args.first_tile + args.num_tiles;
  const int64_t split = args.first_head_tile < args.first_tile ? args.first_tile
                        : args.first_head_tile > last          ? last
                                                               : args.first_head_tile;
  begin = player ? split : args.first_tile;
  end = player ? last : split;
}

}  // namespace sf
