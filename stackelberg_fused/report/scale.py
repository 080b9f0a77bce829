"""Axes: which range of values is shown, on which scale, and where the ticks are."""

from __future__ import annotations

import math
from dataclasses import dataclass

SPANS = 10  # of the lower part of the values: what is far above it lies outside of a frame
LOG_FROM = 20.0  # highest by lowest value from which a scale is logarithmic
MOST = 1e300  # a value above it counts as infinite
LOG_SPAN = 1e5  # highest by lowest value of a logarithmic axis: a rate that ends near 0 goes out of the frame


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    def share(self, value: float) -> float | None:
        """Return where a value lies, 0 at the lower end and 1 at the upper; None for one that has no place."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return None
        if self.log:
            value, low, high = math.log(value), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low)

    def ticks(self, most: int = 5) -> list[float]:
        """Return round values within the axis."""
        return _log_ticks(self, most) if self.log else _linear_ticks(self.low, self.high, most)


def scale_of(values: list[float], *, may_be_log: bool = True, cut: bool = True) -> Scale:
    """Return an axis for values; those that are not finite do not count.

    Args:
        values: any numbers.
        may_be_log: use a logarithmic scale where they are positive and span a factor of `LOG_FROM`.
        cut: leave those far above the lower 40 per cent outside, so that a run that diverged does not flatten the rest.
    """
    finite = sorted(value for value in values if abs(value) < MOST)
    if not finite:
        return Scale(0.0, 1.0)
    low, high = finite[0], finite[-1]
    lower = finite[int(0.4 * (len(finite) - 1))]
    is_log = may_be_log and low > 0 and lower / low > LOG_FROM
    if cut and lower > low and not is_log:
        high = min(high, low + SPANS * (lower - low))
    low = max(low, high / LOG_SPAN) if may_be_log and low > 0 else low
    if may_be_log and low > 0 and high / low >= LOG_FROM:
        return Scale(low / (high / low) ** 0.05, high * (high / low) ** 0.05, log=True)
    # a constant, up to rounding, stands in the middle
    spread = high - low if high - low > 1e-9 * abs(high) else abs(high)
    margin = 0.06 * spread or 1.0
    return Scale(low - margin if low < 0 or low > margin else 0.0, high + margin)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    width = (high - low) / most
    power = 10.0 ** math.floor(math.log10(width))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= width)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def _log_ticks(scale: Scale, most: int) -> list[float]:
    low, high = math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**p for p in range(low, high + 1) for f in factors]
        ticks = [tick for tick in ticks if scale.low <= tick <= scale.high]
        if len(ticks) <= most + 1:
            break
    return ticks[:: math.ceil(len(ticks) / (most + 1))] if ticks else [scale.low, scale.high]


def text(value: float) -> str:
    """Return a number for an axis or a table: four digits, thousands with a narrow space."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "NaN")
    if value and not 1e-4 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.3g}".replace("-", "−", value < 0).partition("e")
        if not exponent:
            return mantissa
        return f"{'' if mantissa == '1' else mantissa + '·'}10{_superscript(int(exponent))}"
    if abs(value) >= 1e4:
        return f"{value:,.0f}".replace(",", "\u202f")
    return f"{value:.4g}".replace("-", "−")


def _superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
