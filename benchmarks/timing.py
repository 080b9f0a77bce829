"""Clocks, samples and interleaved rounds."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

now = time.perf_counter_ns
# a sample is the mean over calls that take about this long together, so that a short step is long
# compared with the noise of the clock
SAMPLE_NS = 2_000_000
# after another contestant's turn, caches, page tables and threads need some milliseconds to settle,
# whatever a step costs: each sample begins with as many untimed calls as fit, and at least one
WARMUP_NS = 5_000_000
MAX_ITERATIONS = 50
# a step that takes longer than this needs no warm-up
SLOW_NS = 100_000_000


def no_setup() -> None:
    """Do nothing before a call."""


class Sampled(Protocol):
    """Anything that `interleave` can time."""

    def calibrate(self) -> None:
        """Prepare for samples."""

    def sample(self) -> float:
        """Return nanoseconds per call."""


@dataclass
class Action:
    """A call to be timed.

    Attributes:
        call: is timed.
        device: "cuda" waits for the GPU at the end of each sample.
        setup: runs before each call, outside the clock.
        host_only: times the call alone and lets the GPU run on, which gives the cost on the host.
        iterations: timed calls per sample; `calibrate` chooses it.
        warmup_iterations: untimed calls before them; `calibrate` chooses it.
    """

    call: Callable[[], object]
    device: str = "cpu"
    setup: Callable[[], object] = no_setup
    host_only: bool = False
    iterations: int = field(default=1, init=False)
    warmup_iterations: int = field(default=0, init=False)

    def calibrate(self) -> None:
        """Choose the number of timed and of untimed calls per sample from the cost of a call."""
        cost = max(1, self.sample())
        if cost < SLOW_NS:
            cost = max(1, min(self.sample(), self.sample()))
        self.iterations = int(min(MAX_ITERATIONS, max(1, SAMPLE_NS // cost)))
        warmup = min(MAX_ITERATIONS, max(1, round(WARMUP_NS / cost)))
        self.warmup_iterations = warmup if cost < SLOW_NS else 0

    def sample(self) -> float:
        """Return nanoseconds per call, the mean of one sample."""
        for _ in range(self.warmup_iterations):
            self.setup()
            self.call()
        if self.device == "cuda" and self.setup is no_setup and not self.host_only:
            return self._time_by_events()
        return self._time_each_call()

    def _time_each_call(self) -> float:
        total = 0
        on_gpu = self.device == "cuda"
        for _ in range(self.iterations):
            self.setup()
            if on_gpu:
                torch.cuda.synchronize()
            start = now()
            self.call()
            if on_gpu and not self.host_only:
                torch.cuda.synchronize()
            total += now() - start
        return total / self.iterations

    def _time_by_events(self) -> float:
        # where a step takes longer on the host than on the GPU, the time between the events is the host's
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(self.iterations):
            self.call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e6 / self.iterations


def interleave(
    actions: Mapping[str, Sampled], rounds: int, seconds: float, seed: int = 0
) -> dict[str, list[float]]:
    """Take one sample of every action per round, in a new order each round.

    The rounds end after `rounds` of them, or after `seconds` but not before the third. Returns samples in
    nanoseconds; index i of every list is from the same round.
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
    """Round to a tenth of a nanosecond."""
    return [round(s, 1) for s in samples]


def quantile(samples: list[float], q: float) -> float:
    """Interpolate linearly between order statistics; `q` is in [0, 1]."""
    ordered = sorted(samples)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def quantiles(samples: list[float]) -> dict[str, float]:
    """Return p20, p50 and p80 in nanoseconds."""
    return {f"p{int(q * 100)}_ns": round(quantile(samples, q), 1) for q in (0.2, 0.5, 0.8)}


def median_ratio(numerator: list[float], denominator: list[float]) -> float:
    """Return the median over rounds of the ratio within a round."""
    return quantile([n / d for n, d in zip(numerator, denominator, strict=True)], 0.5)
