"""Clocks, bursts and interleaved rounds."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

now = time.perf_counter_ns
# a sample is the mean over a burst of about this length, so that short steps are not lost in the
# clock's own noise
BURST_NS = 2_000_000
# after another's turn it takes some milliseconds until caches, page tables and threads are settled,
# whatever a step costs: everyone gets as many untimed calls as fit, and one at least
SETTLE_NS = 5_000_000
MAX_BURST = 50
SLOW_NS = 100_000_000


def nothing() -> None:
    """What an action does between steps when gradients are kept."""


@dataclass
class Action:
    """Something to time: `call()`, with `before()` outside the clock."""

    call: Callable[[], object]
    device: str = "cpu"
    before: Callable[[], object] = nothing
    # time the call alone and let the GPU run on: the cost on the host
    host_only: bool = False
    inner: int = field(default=1, init=False)
    warm: int = field(default=0, init=False)

    def calibrate(self) -> None:
        """Choose the burst's length and the untimed calls in front of it; very long steps get none."""
        cost = max(1, self.sample())
        if cost < SLOW_NS:
            cost = max(1, min(self.sample(), self.sample()))
        self.inner = int(min(MAX_BURST, max(1, BURST_NS // cost)))
        settling = min(MAX_BURST, max(1, round(SETTLE_NS / cost)))
        self.warm = settling if cost < SLOW_NS else 0

    def sample(self) -> float:
        """Nanoseconds per call, the mean over one burst."""
        for _ in range(self.warm):
            self.before()
            self.call()
        if self.device == "cuda" and self.before is nothing and not self.host_only:
            return self._device_burst()
        return self._stepwise_burst()

    def _stepwise_burst(self) -> float:
        total = 0
        wait = self.device == "cuda"
        for _ in range(self.inner):
            self.before()
            if wait:
                torch.cuda.synchronize()
            start = now()
            self.call()
            if wait and not self.host_only:
                torch.cuda.synchronize()
            total += now() - start
        return total / self.inner

    def _device_burst(self) -> float:
        # a step shorter on the GPU than on the host shows as host time between the two events
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(self.inner):
            self.call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e6 / self.inner


def interleave(
    actions: dict[str, Action], rounds: int, seconds: float, seed: int = 0
) -> dict[str, list[float]]:
    """One sample of every action per round, in a new order each round.

    Ends after `rounds`, or after `seconds` but not before the third round. Returns the samples in
    nanoseconds, index i of every list from the same round.
    """
    for action in actions.values():
        action.calibrate()
    samples: dict[str, list[float]] = {name: [] for name in actions}
    order = list(actions)
    shuffle = random.Random(seed).shuffle
    gc.collect()
    gc.disable()
    try:
        started = now()
        for done in range(rounds):
            if done >= 3 and now() - started > seconds * 1e9:
                break
            shuffle(order)
            for name in order:
                samples[name].append(actions[name].sample())
    finally:
        gc.enable()
    return samples


def rounded(samples: list[float]) -> list[float]:
    """To a tenth of a nanosecond."""
    return [round(s, 1) for s in samples]


def quantile(samples: list[float], q: float) -> float:
    """Linear interpolation between order statistics, `q` in [0, 1]."""
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def quantiles(samples: list[float]) -> dict[str, float]:
    """p20, p50 and p80 in nanoseconds."""
    return {f"p{int(q * 100)}_ns": round(quantile(samples, q), 1) for q in (0.2, 0.5, 0.8)}


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return quantile([n / d for n, d in zip(numerator, denominator, strict=True)], 0.5)
