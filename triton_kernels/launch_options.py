"""The options of a launch: tasks beside the update, and the tensors that they need."""

from dataclasses import dataclass, field

import torch

from .tables import (
    CLIPPED,
    COUNTED,
    JOINT_SETS,
    LOW_PRECISION,
    SCALED,
    SKIPPABLE,
    TURNS,
    ZERO_GRADS,
)

JOINT_ARGUMENTS = ("sets", "set_sums", "set_digits", "set_factors", "set_tiles_done", "moved")


@dataclass(frozen=True)
class LaunchOptions:
    """The arguments of a launch beside its tables; tensors are on their device, None where there is none.

    Attributes:
        factors: float32 [2]: what clips the gradients of body and head.
        grad_scale: float32 [1]: what they are divided by.
        found_inf: float32 [1]: where it is not 0 nothing moves.
        groups: float64 [groups * 8], of a table that counts steps on its device; then `rows` holds one row per group.
        steps, ready, waited, arrived: float32, int32, float32, int32 [parameters], likewise.
        takes_turns: whether some group does not move on every step.
        zero_grads: whether gradients are zero afterwards.
        joint: by the kernel's argument: sets int64 [sets * 6], set_sums int64 [sets, COPIES, KERNEL_WORDS], set_digits
            int64 [sets, WORDS], set_factors float64 [sets], set_tiles_done int32 [sets], moved int32 [parameters];
            empty where there are no joint sets.
        formats: those that records have, see `step_kernel`.
    """

    factors: torch.Tensor | None = None
    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    steps: torch.Tensor | None = None
    ready: torch.Tensor | None = None
    waited: torch.Tensor | None = None
    arrived: torch.Tensor | None = None
    takes_turns: bool = False
    zero_grads: bool = False
    joint: dict[str, torch.Tensor] = field(default_factory=dict)
    formats: tuple[int, ...] = (0,)

    @property
    def mode(self) -> int:
        flags = (
            (CLIPPED, self.factors is not None),
            (SCALED, self.grad_scale is not None),
            (SKIPPABLE, self.found_inf is not None),
            (COUNTED, self.groups is not None),
            (TURNS, self.takes_turns),
            (ZERO_GRADS, self.zero_grads),
            (JOINT_SETS, bool(self.joint)),
            (LOW_PRECISION, self.formats != (0,)),
        )
        return sum(flag.value for flag, is_set in flags if is_set)

    def pointers(self, unused: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the tensors by the kernel's argument; for one that the mode does not read, any will do."""
        names = ("factors", "grad_scale", "found_inf", "groups", "steps", "waited", "arrived")
        given = {name: getattr(self, name) for name in names} | {"readiness": self.ready}
        given |= dict.fromkeys(JOINT_ARGUMENTS) | self.joint
        return {name: unused if tensor is None else tensor for name, tensor in given.items()}
