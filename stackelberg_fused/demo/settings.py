"""Everything that decides what a demo computes: kept in the checkpoint, written to the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..groups.option_types import BackendName

# How the rates were chosen: by the final validation loss of scans over `lr` and `body_lr`, nothing
# else touched. Each control has the best single rate that was tried. Of the ratios, language's 3 and
# 10 have their own best body rate; 30 was not scanned there and shares it. The scans are not part of
# the repository, so no figure of theirs stands here: `--lr`, `--body-lr` and `--seed` repeat any point.
DEFAULTS: dict[str, dict[str, Any]] = {
    "language": {
        "steps": 800,
        "ratios": (3.0, 10.0, 30.0),
        "lr": 4e-3,
        "body_lr": 3e-3,
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
    },
    "digits": {
        "steps": 400,
        "ratios": (3.0, 10.0, 30.0),
        "lr": 1e-2,
        "body_lr": 3e-3,
        "betas": (0.9, 0.999),
        "weight_decay": 0.01,
    },
}
QUICK_STEPS = 20


@dataclass(frozen=True)
class Settings:
    """One demo: a control at one rate and one run per head/body ratio, alike in all the rest.

    `lr` is the control's peak rate, `body_lr` the peak rate of the body in the runs with a ratio.
    """

    task: str
    steps: int
    ratios: tuple[float, ...]
    lr: float
    body_lr: float
    betas: tuple[float, float]
    weight_decay: float
    seed: int
    backend: BackendName
    device: str
    threads: int
    quick: bool
    head_scale: float = 1.0  # the head's initial weights are multiplied by it
    warmup: float = 0.05  # share of the steps in which the rates rise to their peak
    final: float = 0.1  # share of the peak at which the cosine ends
    evaluations: int = 20  # equally spaced, besides the one before the first step

    def to_dict(self) -> dict[str, Any]:
        """Lists for tuples, so that JSON and the checkpoint give back what was put in."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**given)

    def evaluation_steps(self) -> list[int]:
        """Steps after which the model is validated; a quarter, a half ... are always among them."""
        count = min(self.evaluations, self.steps)
        return sorted({round(i * self.steps / count) for i in range(count + 1)})
