"""The arms of the training experiments: one per optimizer, mode and ratio."""

from __future__ import annotations

from dataclasses import dataclass

GRID_STEP = 10**0.5  # two rates per decade


@dataclass(frozen=True)
class Arm:
    """One way to train, at any body rate.

    Attributes:
        optimizer: "Adam" or "SGD".
        mode: "simultaneous" or "alternating".
        ratio: the head's rate relative to the body's.
    """

    optimizer: str
    mode: str
    ratio: float

    def key(self, exponent: int, seed: int) -> str:
        """Return the key of the run at one body rate and seed."""
        rate = body_rate(exponent)
        return f"{self.optimizer}, {self.mode}, ratio {self.ratio:g}, rate {rate:.3g}, seed {seed}"

    def label(self) -> str:
        """Return optimizer and mode."""
        return f"{self.optimizer}, {self.mode}"


def body_rate(exponent: int) -> float:
    """Return the body rate 10 ** (exponent / 2)."""
    return GRID_STEP**exponent
