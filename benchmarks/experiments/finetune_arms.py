"""How a new head and a trained body learn together, or one after the other: the arms of the finetune experiment."""

from __future__ import annotations

from dataclasses import dataclass

from .arm import GRID_STEP


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune, at any rate of the grid.

    Attributes:
        mode: "together", "alternating" (at each batch the head steps first), "probe first" (for a share of the steps
            the head alone), "exact first" (the head is set to its best response), or "head only".
        ratio: the head's rate relative to the body's while both move.
        share: of the steps that the head has for itself at first, or is charged for its best response.
        head_steps: at each batch, if alternating.
    """

    mode: str
    ratio: float = 1.0
    share: float = 0.0
    head_steps: int = 1

    @property
    def label(self) -> str:
        """Name the arm in tables, plots and results."""
        if self.mode == "head only":
            return "head only"
        if self.mode in ("probe first", "exact first"):
            what = "head first" if self.mode == "probe first" else "best response"
            return f"{what} ({self.share:.0%} of steps), then all"
        if self.mode == "alternating":
            steps = f", {self.head_steps} head steps" if self.head_steps > 1 else ""
            return f"alternating, ratio {self.ratio:g}{steps}"
        return "one rate" if self.ratio == 1 else f"ratio {self.ratio:g}"

    def rates(self, exponent: float) -> tuple[float, float]:
        """Return the rates of body and head; their geometric mean is the exponent's half decade."""
        return GRID_STEP**exponent / self.ratio**0.5, GRID_STEP**exponent * self.ratio**0.5

    def exponents(self, grid: range) -> list[float]:
        """Return the exponents to try: those of the grid, and for one rate also those between.

        So one rate has as many as "probe first" has for its two phases, of which the first one's are head only's.
        """
        if self != ONE_RATE:
            return list(map(float, grid))
        return [e / 2 for e in range(2 * grid[0], 2 * grid[-1] + 1)]


ONE_RATE = Arm("together")
HEAD_ONLY = Arm("head only")
PROBES_FIRST = (Arm("probe first", share=0.25), Arm("probe first", share=0.5))
EXACT_FIRST = Arm("exact first", share=0.25)
ARMS = (
    ONE_RATE,
    *(Arm("together", ratio) for ratio in (3, 10, 30, 100)),
    Arm("alternating"),
    Arm("alternating", 10),
    Arm("alternating", head_steps=4),
    *PROBES_FIRST,
    EXACT_FIRST,
    HEAD_ONLY,
)
