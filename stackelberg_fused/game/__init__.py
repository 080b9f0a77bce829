"""The Stackelberg game on top of the optimizers: the body leads, the head follows, and both minimise one loss f.

`theta` are the body's parameters, `w` the head's, `Phi(theta) = min over w of f(theta, w)` (docs/algorithm.md).

- `follower_objective`: f as a function of w at fixed features.
- `best_response`: w*, the follower's minimiser.
- `stackelberg_value`: Phi, the leader's objective, and the norm of the hypergradient grad Phi.
- `alternating`: the two-time-scale update, built on `player_gradients`, `players` and `microbatches`.
- `curvature`: spectra of the Hessians of f and Phi, from `hessian_products` and `spectrum`.
- `schedules`, `find_ratio`: learning rates of both players.
- `find_rates`: a rate for each group, built on `rate_groups`, `rate_study` (points, by Optuna), `search_file`,
  `rate_search` (the result) and `rate_plot`.
"""
