"""Parity of a contestant's first step with the reference's, checked before anything is timed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .contestant import Contestant
from .sharded import whole
from .workloads import SCALE, Workload

# stackelberg_fused.tools.parity has the same bounds; the process that times torch alone must not import it.
# the rounding of float32 allows: ulp of max(|p|, |update|), of max(|m|, |g|), of max(v, g^2), of
# the largest of average, p and update
ULPS = {"p": 8.0, "exp_avg": 2.0, "exp_avg_sq": 2.0, "ema": 10.0}
# a peer whose states have fewer bits than float32 still makes the first update to this relative error
PEER_ERROR = 0.02
# of moments, which show whether gradients were clipped. The first update does not: Adam divides the
# gradient by its size. torch adds up norms in float32, on a CPU for 85 M elements 0.8 % too low
CLIP_ERROR = 0.05
# elements compared at a time, so that temporaries stay in the cache
CHUNK = 1 << 20


@dataclass
class Expected:
    """One step of the reference.

    Attributes:
        start: parameters before the step; like all lists here, one tensor per parameter.
        grads: gradients that the rule gets, in a training step unscaled and clipped.
        params, exp_avg, exp_avg_sq: after the step.
        ema_decay: decay of the average of the weights; None means no average.
        clears_gradients: the gradients must be zero after the step.
    """

    start: list[torch.Tensor]
    grads: list[torch.Tensor]
    params: list[torch.Tensor]
    exp_avg: list[torch.Tensor]
    exp_avg_sq: list[torch.Tensor]
    ema_decay: float | None = None
    clears_gradients: bool = False


class RelativeError:
    """Accumulates the 2-norm of a difference relative to the 2-norm of the value that is expected."""

    def __init__(self) -> None:
        self._difference = self._expected = 0.0

    def add(self, difference: torch.Tensor, expected: torch.Tensor) -> None:
        """Add some elements of the difference, and the same elements of the expected value."""
        self._difference += difference.double().square().sum().item()
        self._expected += expected.double().square().sum().item()

    def message(self, bound: float, quantity: str) -> str:
        """Return "" if the error is within `bound`, or a sentence about the quantity."""
        error = (self._difference / self._expected if self._expected else self._difference) ** 0.5
        # not ">": a NaN must not pass
        return "" if error <= bound else f"{quantity} differs from AdamW's by {error:.2%}"


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch in one thread: many small operators would wait for their threads each time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def ulp(x: torch.Tensor) -> torch.Tensor:
    """Return the distance from |x| to the next float32 above it."""
    size = x.abs()
    return torch.nextafter(size, torch.full_like(size, torch.inf)).sub_(size)


def parameter_name(index: int, p: torch.Tensor) -> str:
    """Name a parameter in a message."""
    return f"parameter {index} of shape {tuple(p.shape)}"


def _chunks(*tensors: torch.Tensor) -> Iterator[tuple[int, list[torch.Tensor]]]:
    flat = [whole(t).detach().reshape(-1) for t in tensors]
    for start in range(0, flat[0].numel(), CHUNK):
        yield start, [f[start : start + CHUNK] for f in flat]


def _ulp_error(
    actual: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor, quantity: str, name: str
) -> str:
    """Return "" if all elements are within `ULPS`, or the one that is furthest off."""
    for start, (a, e, s) in _chunks(actual, expected, scale):
        # exact in float32: neighbours subtract without rounding, and 2 and 8 are powers of two
        off = (a - e).abs_()
        allowed = ulp(s).mul_(ULPS[quantity])
        # not "off > allowed": a NaN must not pass
        if not (off <= allowed).all():
            distance = off.double() / allowed.double() * ULPS[quantity]
            i = int(distance.nan_to_num(nan=torch.inf).argmax())
            return (
                f"{quantity} of {name}, element {start + i}: {a[i].item()!r} instead of"
                f" {e[i].item()!r} ({distance[i].item():.3g} ulp, at most {ULPS[quantity]:g})"
            )
    return ""


def exact_error(
    params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, expected: Expected
) -> str:
    """Return "" if p, exp_avg and exp_avg_sq are within `ULPS` of the reference's, or an element that is not."""
    for i, p in enumerate(params):
        name, state = parameter_name(i, p), optimizer.state[p]
        grad, start, after = expected.grads[i], expected.start[i], expected.params[i]
        m, v = expected.exp_avg[i], expected.exp_avg_sq[i]
        error = (
            _ulp_error(state["exp_avg"], m, torch.maximum(m.abs(), grad.abs()), "exp_avg", name)
            or _ulp_error(
                state["exp_avg_sq"], v, torch.maximum(v, grad.square()), "exp_avg_sq", name
            )
            or _ulp_error(p, after, torch.maximum(after.abs(), (after - start).abs()), "p", name)
        )
        if error:
            return error
    return ""


def average_error(
    params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, expected: Expected
) -> str:
    """Return "" if the averages are within `ULPS` of those of the contestant's own p, or an element that is not."""
    if expected.ema_decay is None:
        return ""
    for i, p in enumerate(params):
        start, after = expected.start[i], p.detach()
        average = start.lerp(after, 1 - expected.ema_decay)
        scale = torch.maximum(average.abs(), torch.maximum(after.abs(), (after - start).abs()))
        if error := _ulp_error(
            optimizer.state[p]["ema"], average, scale, "ema", parameter_name(i, p)
        ):
            return error
    return ""


def moments_error(
    params: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, expected: Expected
) -> str:
    """Return "" if both moments are within `CLIP_ERROR` of the reference's, relative in the 2-norm.

    Each parameter counts alone: a role that was not clipped must not hide behind a larger one.
    """
    for i, p in enumerate(params):
        for name, moments in (("exp_avg", expected.exp_avg), ("exp_avg_sq", expected.exp_avg_sq)):
            error = RelativeError()
            for _, (a, e) in _chunks(optimizer.state[p][name], moments[i]):
                error.add(a.double() - e.double(), e)
            if message := error.message(CLIP_ERROR, f"{name} of {parameter_name(i, p)}"):
                return message
    return ""


def update_error(params: list[torch.nn.Parameter], expected: Expected) -> str:
    """Return "" if the update is within `PEER_ERROR` of the reference's, relative in the 2-norm."""
    error = RelativeError()
    for i, p in enumerate(params):
        for _, (a, e, s) in _chunks(p, expected.params[i], expected.start[i]):
            error.add(a.double() - e.double(), e.double() - s.double())
    return error.message(PEER_ERROR, "its update")


def parity_error(
    contestant: Contestant,
    params: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    expected: Expected,
) -> str:
    """Return "" if `contestant`'s first step is the reference's within its tolerance, or a difference."""
    with single_thread():
        if contestant.exact:
            error = exact_error(params, optimizer, expected)
        else:
            error = update_error(params, expected)
        if not expected.clears_gradients:
            return error
        error = error or average_error(params, optimizer, expected)
        if not contestant.exact:
            error = error or moments_error(params, optimizer, expected)
        cleared = all(p.grad is not None and not p.grad.any() for p in params)
        return error or ("" if cleared else "gradients are not zero after the step")


def reference_step(
    reference: Contestant,
    workload: Workload,
    start: list[torch.Tensor],
    grads: list[torch.Tensor],
) -> Expected:
    """Make the reference's step from `start` with `grads`."""
    training_step = workload.training_step
    params = [torch.nn.Parameter(t.clone()) for t in start]
    for p, g in zip(params, grads, strict=True):
        # a training step clears the gradients that it is given
        p.grad = g if training_step is None else g.clone()
    optimizer, step = reference.make(workload.param_groups(params))
    step()
    state = [optimizer.state[p] for p in params]
    if training_step is not None:
        factors = optimizer.last_step.clip_factor
        scale = SCALE if training_step.scaled else 1.0
        by_param = {p: factors[g["role"]] for g in optimizer.param_groups for p in g["params"]}
        grads = [g * (by_param[p] / scale) for p, g in zip(params, grads, strict=True)]
    return Expected(
        start,
        grads,
        [p.detach() for p in params],
        [s["exp_avg"] for s in state],
        [s["exp_avg_sq"] for s in state],
        training_step and training_step.ema_decay,
        training_step is not None,
    )
