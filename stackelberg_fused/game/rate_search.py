"""What `find_rates` found: one rate for all groups, a rate for each, and which is recommended."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from .rate_study import Measured

ONE, EACH = "one rate", "rates by group"


@dataclass(frozen=True)
class RateSearch:
    """One rate for all groups, and a rate for each, and which of them is recommended.

    The loss of a run is the mean over its last quarter, or what `evaluate` returned, or infinity if the run diverged.
    Where there is one group only, nothing is compared: `losses` and `trials` have "one rate" alone, and `p_value` is
    NaN.

    Attributes:
        names: of the groups.
        one_rate: the best rate for all groups.
        rates: by name of a group: its rate where each has its own. All are `one_rate` where no better point was found.
        losses: of "one rate" and "rates by group": the loss for each seed of runs that chose no rate.
        p_value: of a sign-flip test (Fisher 1935; see `sign_flip_p_value`) that rates by group are better, with the
            same seeds. It is at least 2**-seeds, and 1/10001 above 14 seeds. NaN if all seeds gave equal runs: then
            nothing is known of chance, and the smaller loss decides.
        by_group: rates by group are recommended: `p_value` is not above `level`, or NaN, and their median of `losses`
            is smaller. (The test is of the mean difference, so that either may hold without the other.)
        recommended: by name of a group: its rate; the same for all unless `by_group`.
        at_edge: groups whose rate is within a twentieth of the searched range of one of its ends, and "one rate" if
            that is. A wider range may have better ones.
        trials: of "one rate" and "rates by group": what was measured of each rate, or rates, that were tried.
        seeds: the number of runs in each of `losses`.
        level: the largest p-value at which rates by group are recommended.
    """

    names: list[str]
    one_rate: float
    rates: dict[str, float]
    losses: dict[str, list[float]]
    p_value: float
    by_group: bool
    recommended: dict[str, float]
    at_edge: list[str]
    trials: dict[str, list[Measured]]
    seeds: int
    level: float

    def table(self) -> str:
        """Return a text table: the rate of each group both ways, then the losses."""
        kinds = list(self.losses)
        lines = [f"{'group':>20}" + "".join(f"{kind:>16}" for kind in kinds)]
        for name in self.names:
            rates = [self.one_rate, self.rates[name]][: len(kinds)]
            edge = " (near the end of the range)" if name in self.at_edge else ""
            lines.append(
                f"{shortened(name, 20):>20}{''.join(f'{rate:>16.3g}' for rate in rates)}{edge}"
            )
        for label, of in (("loss, median", statistics.median), ("smallest", min), ("largest", max)):
            values = [f"{of(self.losses[kind]):>16.5g}" for kind in kinds]
            lines.append(f"{label:>20}{''.join(values)}")
        if ONE in self.at_edge:
            lines.append("The one rate is near the end of the range.")
        return "\n".join(lines)

    def verdict(self) -> str:
        """Return the recommendation in a sentence, and one more if rates are near the ends of the range."""
        said = self._said()
        if self.at_edge:
            said += f" Near the ends of the range, try a wider one: {', '.join(self.at_edge)}."
        return said

    def _said(self) -> str:
        if len(self.names) == 1:
            return f"There is one group only, so nothing was compared: its best rate is {self.one_rate:.3g}."
        p = f"p = {self.p_value:.2g} with {self.seeds} seeds"
        if self.by_group:
            chosen = f"Rates by group ({', '.join(f'{n} {r:.3g}' for n, r in self.rates.items())})"
            if math.isnan(self.p_value):
                return f"{chosen} were best. All seeds gave the same runs, so that nothing is known of chance."
            return f"{chosen}: better than one rate, {p}; after short runs: long ones may differ."
        one = f"One rate for all groups, {self.one_rate:.3g}"
        if set(self.rates.values()) == {self.one_rate}:
            return f"{one}: the search by group found no better point."
        if math.isnan(self.p_value):
            return f"{one}: rates by group were not better."
        if self.p_value <= self.level:
            return f"{one}: with rates by group the mean loss was smaller ({p}), but the median was not."
        return f"{one}: rates by group were not better beyond chance: {p}."

    def plot(self, path: str | Path) -> None:
        """Write a picture to `path`: the loss over each group's rate, and the losses of both ways by seed.

        Args:
            path: of the picture; its ending says which format it has.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .rate_plot import draw

        draw(self, path)


def shortened(name: str, most: int) -> str:
    """Return a name of at most so many characters: what tells layers apart is at both ends."""
    if len(name) <= most:
        return name
    return f"{name[: (most - 1) // 2]}…{name[len(name) - most // 2 :]}"
