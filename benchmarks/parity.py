"""Does a contestant make the same step as the reference? Asked before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .contestant import Contestant
from .workloads import SCALE, Workload

# stackelberg_fused.tools.parity says the same; the process that times torch alone must not import it.
# what float32 rounding allows: ulp of max(|p|, |update|), of max(|m|, |g|), of max(v, g^2), of
# the largest of average, p and update
ULPS = {"p": 8.0, "exp_avg": 2.0, "exp_avg_sq": 2.0, "ema": 10.0}
# a peer whose states are narrower than float32 still makes the first update to this relative error
PEER_ERROR = 0.02
# of moments, which tell whether gradients were clipped: a first update does not, since Adam divides
# the gradient by its size. torch adds up norms in float32, on a CPU for 85 M elements 0.8 % too low
CLIP_ERROR = 0.05
# temporaries stay in the cache
CHUNK = 1 << 20


@dataclass
class Expected:
    """One step of the reference from `start` with `grads`; one tensor per parameter in each.

    Of a whole step, `grads` are the unscaled and clipped ones, and gradients are `cleared` after it;
    `ema_decay` is None where no average of the weights is kept.
    """

    start: list[torch.Tensor]
    grads: list[torch.Tensor]
    params: list[torch.Tensor]
    exp_avg: list[torch.Tensor]
    exp_avg_sq: list[torch.Tensor]
    ema_decay: float | None = None
    cleared: bool = False


def ulp(x: torch.Tensor) -> torch.Tensor:
    """Distance from |x| to the next float32 above it."""
    size = x.abs()
    return torch.nextafter(size, torch.full_like(size, torch.inf)).sub_(size)


def _chunks(*tensors: torch.Tensor) -> Iterator[tuple[int, list[torch.Tensor]]]:
    flat = [t.detach().reshape(-1) for t in tensors]
    for start in range(0, flat[0].numel(), CHUNK):
        yield start, [f[start : start + CHUNK] for f in flat]


def _worst(
    actual: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor, quantity: str, where: str
) -> str:
    """Empty, or the element that is furthest off."""
    for start, (a, e, s) in _chunks(actual, expected, scale):
        # exact in float32: neighbours subtract without rounding, and 2 and 8 are powers of two
        off = (a - e).abs_()
        allowed = ulp(s).mul_(ULPS[quantity])
        # not "off > allowed": a NaN must not pass
        if not (off <= allowed).all():
            distance = off.double() / allowed.double() * ULPS[quantity]
            i = int(distance.nan_to_num(nan=torch.inf).argmax())
            return (
                f"{quantity} of {where}, element {start + i}: {a[i].item()!r} instead of"
                f" {e[i].item()!r} ({distance[i].item():.3g} ulp, at most {ULPS[quantity]:g})"
            )
    return ""


def exact_error(
    params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, expected: Expected
) -> str:
    """Empty if p, exp_avg and exp_avg_sq are within `ULPS` of the reference's, or an offender."""
    for i, p in enumerate(params):
        where = f"parameter {i} of shape {tuple(p.shape)}"
        state = optimizer.state[p]
        grad, start, after = expected.grads[i], expected.start[i], expected.params[i]
        m, v = expected.exp_avg[i], expected.exp_avg_sq[i]
        error = (
            _worst(state["exp_avg"], m, torch.maximum(m.abs(), grad.abs()), "exp_avg", where)
            or _worst(state["exp_avg_sq"], v, torch.maximum(v, grad.square()), "exp_avg_sq", where)
            or _worst(p, after, torch.maximum(after.abs(), (after - start).abs()), "p", where)
        )
        if error:
            return error
    return ""


def average_error(
    params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, expected: Expected
) -> str:
    """Empty if the averages are within `ULPS` of what the contestant's own p says, or an offender."""
    if expected.ema_decay is None:
        return ""
    state = optimizer.state
    for i, p in enumerate(params):
        start, after = expected.start[i], p.detach()
        average = start.lerp(after, 1 - expected.ema_decay)
        size = torch.maximum(average.abs(), torch.maximum(after.abs(), (after - start).abs()))
        where = f"parameter {i} of shape {tuple(p.shape)}"
        if error := _worst(state[p]["ema"], average, size, "ema", where):
            return error
    return ""


def moments_error(
    params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, expected: Expected
) -> str:
    """Empty if both moments are within `CLIP_ERROR` of the reference's, relative in the 2-norm.

    Each parameter for itself: a role that was not clipped must not hide behind a larger one.
    """
    state = optimizer.state
    for i, p in enumerate(params):
        for name in ("exp_avg", "exp_avg_sq"):
            error = _relative(state[p][name], getattr(expected, name)[i])
            # not ">": a NaN must not pass
            if not error <= CLIP_ERROR:
                return f"{name} of parameter {i} differs from AdamW's by {error:.1%}"
    return ""


def _relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    wrong = size = 0.0
    for _, (a, e) in _chunks(actual, expected):
        wrong += (a.double() - e.double()).square().sum().item()
        size += e.double().square().sum().item()
    return (wrong / size) ** 0.5


def update_error(params: list[torch.nn.Parameter], expected: Expected) -> str:
    """Empty if the update is within `PEER_ERROR` of the reference's, relative in the 2-norm."""
    wrong = size = 0.0
    for i, p in enumerate(params):
        for _, (a, e, s) in _chunks(p, expected.params[i], expected.start[i]):
            wrong += (a.double() - e.double()).square().sum().item()
            size += (e.double() - s.double()).square().sum().item()
    error = (wrong / size) ** 0.5
    return "" if error <= PEER_ERROR else f"its update differs from AdamW's by {error:.1%}"


def parity_error(
    contestant: Contestant,
    params: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    expected: Expected,
) -> str:
    """Empty if `contestant`'s first step is the reference's, at the tolerance it is held to."""
    threads = torch.get_num_threads()
    # many small operators, each of which would wait for its threads
    torch.set_num_threads(1)
    try:
        if contestant.exact:
            error = exact_error(params, optimizer, expected)
        else:
            error = update_error(params, expected)
        if not expected.cleared:
            return error
        error = error or average_error(params, optimizer, expected)
        if not contestant.exact:
            error = error or moments_error(params, optimizer, expected)
        kept = any(p.grad is None or bool(p.grad.any()) for p in params)
        return error or ("gradients are not zero after the step" if kept else "")
    finally:
        torch.set_num_threads(threads)


def expect(
    reference: Contestant,
    workload: Workload,
    start: list[torch.Tensor],
    grads: list[torch.Tensor],
) -> Expected:
    """Make the reference's step."""
    around = workload.around
    params = [torch.nn.Parameter(t.clone()) for t in start]
    for p, g in zip(params, grads, strict=True):
        # a whole step clears what it is given
        p.grad = g if around is None else g.clone()
    optimizer, step = reference.make(workload.param_groups(params))
    step()
    state = [optimizer.state[p] for p in params]
    if around is not None:
        factors = optimizer.last_step.clip_factor
        scale = SCALE if around.scaled else 1.0
        by_param = {p: factors[g["role"]] for g in optimizer.param_groups for p in g["params"]}
        grads = [g * (by_param[p] / scale) for p, g in zip(params, grads, strict=True)]
    return Expected(
        start,
        grads,
        [p.detach() for p in params],
        [s["exp_avg"] for s in state],
        [s["exp_avg_sq"] for s in state],
        around and around.ema_decay,
        around is not None,
    )
