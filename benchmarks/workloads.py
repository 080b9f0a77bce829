"""A row's workload: parameter shapes, their groups, the work of one step, and the targets."""

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
UNSHARDED = "ours cpu, unsharded"
# the least that an Adam step in float32 can move: p, g, m, v read; p, m, v written
ADAM_BYTES = 28
# both are below the norms of the rows' gradients
MAX_GRAD_NORM = {"body": 1.0, "head": 0.5}
# the initial scale of torch's GradScaler
SCALE = 65536.0


@dataclass(frozen=True)
class Target:
    """A bound that one of our contestants must reach in a row.

    Attributes:
        quantity: "torch fused" (times as fast as torch's fused step; the lower of two ratios counts),
            "copy" or "stream" (share of the measured bandwidth at 28 B/parameter), "launches" (kernel
            launches per step, at most), "stored" (bytes per parameter between steps, at most) or `UNSHARDED`
            (times as long as that contestant's step, at most).
        bound: the least or, where it says at most, the largest value.
        contestant: its name; None means the first of ours that can run.
        device: the only device that the target holds for; None means all.
    """

    quantity: str
    bound: float
    contestant: str | None = None
    device: str | None = None

    @property
    def is_counted(self) -> bool:
        """True for a quantity that a busy machine does not change."""
        return self.quantity in ("launches", "stored")

    def met_by(self, value: float) -> bool:
        """Compare a measured value with the bound."""
        is_most = self.is_counted or self.quantity == UNSHARDED
        return value <= self.bound if is_most else value >= self.bound


@dataclass(frozen=True)
class TrainingStep:
    """The work of a training step around the update: clip each role to `MAX_GRAD_NORM`, clear gradients.

    Attributes:
        scaled: gradients are `SCALE` times as large, and a gradient scaler checks and unscales them.
        ema_decay: decay of an exponential moving average of the weights; None means no average.
    """

    scaled: bool = False
    ema_decay: float | None = None

    @property
    def description(self) -> str:
        """The parts of the step, for the report."""
        scaler = "GradScaler (look for infinities, unscale, update)"
        parts = [scaler] * self.scaled + ["clip per role", "step", "clear gradients"]
        return ", ".join(parts + ["EMA of the weights"] * (self.ema_decay is not None))


@dataclass(frozen=True)
class Workload:
    """The parameters of a row and the work of one step over them.

    Attributes:
        name: the row's name.
        shapes: of the parameters.
        group_of: index of each parameter's group.
        first_head: groups from this index on are heads.
        devices: where the row is measured.
        targets: bounds for our contestants.
        new_gradients: each step gets gradients that are other objects at other addresses.
        training_step: work around the update. Gradients then stay in their memory and are filled
            before each step.
        states: `state_dtype` of our contestants in a low-precision row. There every contestant starts
            from numbers that bfloat16 holds, whatever dtype it stores them in.
        mesh: shape of a mesh of this one process that parameters and gradients are sharded over, each in its first
            dimension; () means plain tensors.
    """

    name: str
    shapes: tuple[Shape, ...]
    group_of: tuple[int, ...]
    first_head: int
    devices: tuple[str, ...] = ("cpu",)
    targets: tuple[Target, ...] = ()
    new_gradients: bool = False
    training_step: TrainingStep | None = None
    states: str | None = None
    mesh: tuple[int, ...] = ()

    @property
    def numel(self) -> int:
        """Number of elements of all parameters."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def groups(self) -> int:
        """Number of param groups."""
        return max(self.group_of) + 1

    @property
    def gradients(self) -> str:
        """The gradients' fate between two steps, as the report says it."""
        if self.training_step:
            return "cleared by the step"
        return "new each step" if self.new_gradients else "kept"

    def tensors(self, device: str, seed: int, scale: float) -> list[torch.Tensor]:
        """Draw one float32 tensor of N(0, scale^2) per parameter; seed and device type decide the values."""
        generator = torch.Generator(device).manual_seed(seed)
        tensors = [
            torch.randn(shape, generator=generator, device=device).mul_(scale)
            for shape in self.shapes
        ]
        return tensors if self.states is None else [t.bfloat16().float() for t in tensors]

    def start(self, device: str, seed: int) -> list[torch.Tensor]:
        """Draw the initial parameters, float32.

        In low-precision rows they are so small that the first update shows in bfloat16.
        """
        return self.tensors(device, seed, 1.0 if self.states is None else 0.02)

    def param_groups(self, params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        """Sort the parameters into group dicts, each with its own learning rate."""
        members: list[list[torch.nn.Parameter]] = [[] for _ in range(self.groups)]
        for p, group in zip(params, self.group_of, strict=True):
            members[group].append(p)
        # rates differ by up to two per cent, so that no two groups can be merged
        return [
            param_group(
                group,
                HYPERPARAMETERS["lr"] * (1 + 0.02 * index / self.groups),
                index >= self.first_head,
            )
            for index, group in enumerate(members)
        ]


def param_group(
    params: list[torch.nn.Parameter], body_rate: float, is_head: bool
) -> dict[str, Any]:
    """Describe one param group; a head's learning rate is `HEAD_LR_RATIO` times `body_rate`."""
    return {
        "params": params,
        "lr": body_rate * (HEAD_LR_RATIO if is_head else 1.0),
        "weight_decay": HYPERPARAMETERS["weight_decay"],
        "role": "head" if is_head else "body",
    }
