"""What a row is made of: parameter shapes, their groups, what a step has around it, and targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .shapes import Shape

HYPERPARAMETERS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.01,
}
HEAD_LR_RATIO = 10.0
TORCH_FUSED = "torch fused"
# the least an Adam step in float32 can move: p, g, m, v read; p, m, v written
ADAM_BYTES = 28
# both below the norms of the rows' gradients
MAX_GRAD_NORM = {"body": 1.0, "head": 0.5}
# what a scaler of torch begins with
SCALE = 65536.0


@dataclass(frozen=True)
class Target:
    """`quantity` of our default backend must reach `bound`.

    `quantity` is "torch fused" (times faster, the faster of torch's two figures counts), "copy" or
    "stream" (share of the measured bandwidth at 28 B/parameter), "launches" (kernel launches per
    step, at most) or "stored" (bytes per parameter between steps, at most). Of `contestant`, where a
    row has several of ours; on `device` only, if one is named.
    """

    quantity: str
    bound: float
    contestant: str | None = None
    device: str | None = None

    @property
    def is_counted(self) -> bool:
        """Whether it is the same however busy the machine is."""
        return self.quantity in ("launches", "stored")

    def met_by(self, value: float) -> bool:
        return value <= self.bound if self.is_counted else value >= self.bound


@dataclass(frozen=True)
class Around:
    """What a whole step does beside the update: clip each role to `MAX_GRAD_NORM`, clear gradients.

    `scaled` gradients are `SCALE` times as large, and a gradient scaler looks for infinities and
    unscales; `ema_decay` is that of an average of the weights, if one is kept.
    """

    scaled: bool = False
    ema_decay: float | None = None

    @property
    def words(self) -> str:
        """The parts, for the report."""
        scaler = "GradScaler (look for infinities, unscale, update)"
        parts = [scaler] * self.scaled + ["clip per role", "step", "clear gradients"]
        return ", ".join(parts + ["EMA of the weights"] * (self.ema_decay is not None))


@dataclass(frozen=True)
class Workload:
    """Shapes of the parameters and the group of each; groups from `heads_from` on are heads.

    `around` makes it a row of the whole step: gradients then stay where they are and are filled anew
    before each step. `states` makes it one of fewer bits and is the `state_dtype` of ours: everyone
    begins with the same bfloat16 numbers, whatever they are kept in.
    """

    name: str
    shapes: tuple[Shape, ...]
    group_of: tuple[int, ...]
    heads_from: int
    devices: tuple[str, ...] = ("cpu",)
    targets: tuple[Target, ...] = ()
    new_gradients: bool = False
    about: str = ""
    around: Around | None = None
    states: str | None = None

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def groups(self) -> int:
        return max(self.group_of) + 1

    @property
    def gradients(self) -> str:
        """What happens to gradients between two steps."""
        if self.around:
            return "cleared by the step"
        return "new each step" if self.new_gradients else "kept"

    def tensors(self, device: str, seed: int, scale: float) -> list[torch.Tensor]:
        """One normal tensor per parameter, the same values for the same seed and device type."""
        generator = torch.Generator(device).manual_seed(seed)
        found = [
            torch.randn(shape, generator=generator, device=device).mul_(scale)
            for shape in self.shapes
        ]
        return found if self.states is None else [t.bfloat16().float() for t in found]

    def start(self, device: str, seed: int) -> list[torch.Tensor]:
        """The parameters, float32; of fewer bits, of a size at which bfloat16 shows the first update."""
        return self.tensors(device, seed, 1.0 if self.states is None else 0.02)

    def param_groups(self, params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        """Group dicts, each with a rate of its own; a head's is ``HEAD_LR_RATIO`` times a body's."""
        groups: list[dict[str, Any]] = []
        for index in range(self.groups):
            head = index >= self.heads_from
            # a spread of two per cent over the groups, so that none of them could be merged
            rate = HYPERPARAMETERS["lr"] * (1 + 0.02 * index / self.groups)
            groups.append(
                {
                    "params": [
                        p for p, owner in zip(params, self.group_of, strict=True) if owner == index
                    ],
                    "lr": rate * (HEAD_LR_RATIO if head else 1.0),
                    "weight_decay": HYPERPARAMETERS["weight_decay"],
                    "role": "head" if head else "body",
                }
            )
        return groups
