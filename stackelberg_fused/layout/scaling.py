"""torch.amp.GradScaler's protocol for optimizers that unscale gradients themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """One-element float32 tensors, set on the optimizer around `step()`.

    Attributes:
        grad_scale: what the loss was multiplied by; None where the gradients were unscaled already.
        found_inf: not 0 where a gradient is not finite: then nothing moves.
    """

    grad_scale: Tensor | None
    found_inf: Tensor | None

    @classmethod
    def of(cls, attributes: dict[str, Any]) -> Scaling | None:
        """Read what a scaler set among an optimizer's attributes; None where no scaler is at work."""
        grad_scale, found_inf = attributes.get("grad_scale"), attributes.get("found_inf")
        if grad_scale is None and found_inf is None:
            return None
        if isinstance(found_inf, int) and found_inf == 0:
            found_inf = None  # what torch's scaler makes of no gradients at all
        return cls(_scalar("grad_scale", grad_scale), _scalar("found_inf", found_inf))

    def on(self, device: torch.device) -> Scaling:
        """The same on another device."""
        moved = (t if t is None else move(t, device) for t in (self.grad_scale, self.found_inf))
        return Scaling(*moved)

    def says_skip(self) -> bool:
        """Tell whether the step is to be skipped; waits for the device."""
        return self.found_inf is not None and bool(self.found_inf)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device; waits only where the host is to read it, which it could too early otherwise."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def _scalar(name: str, value: Any) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise TypeError(f"optimizer: {name} must be a tensor of one element, got {value!r}")
    return value.detach().to(torch.float32)
