"""The settings that determine the result of a demo; the checkpoint and the report contain them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..groups.option_types import BackendName

# The rates have the smallest final validation loss of scans over `lr` and `body_lr` that changed nothing
# else. Each control has the best single rate of its scan. For language, ratios 3 and 10 have their own
# best body rate; ratio 30 was not scanned and shares it. The scans are not in the repository, so no figure
# of theirs is given here. `--lr`, `--body-lr` and `--seed` repeat any point.
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
    """The settings of one demo: a control at one rate, and one run per head/body ratio, equal in all else.

    `lr` is the control's peak rate, `body_lr` the body's peak rate in the runs with a ratio.
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
    head_scale: float = 1.0  # factor on the head's initial weights
    warmup: float = 0.05  # share of the steps over which the rates rise to their peak
    final: float = 0.1  # last rate of the cosine, as a share of the peak
    evaluations: int = 20  # equally spaced, in addition to the one before the first step

    def to_dict(self) -> dict[str, Any]:
        """Return a dict with lists in place of tuples: it is unchanged by JSON and by a checkpoint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**given)

    def evaluation_steps(self) -> list[int]:
        """Return the steps after which the model is validated; they include each quarter of the run."""
        count = min(self.evaluations, self.steps)
        return sorted({round(i * self.steps / count) for i in range(count + 1)})
