"""torch.amp.GradScaler's protocol for optimizers that unscale gradients themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..memory.sharding import Ranks


@dataclass(eq=False)
class Search:
    """A look for infinities, which the statistics launch of a step takes in the scaler's place.

    Attributes:
        ranks: who agrees on what was found, beside those that share DTensors.
        found: what the steps found that had gradients, float32 [] each: not 0 where some were not finite.
    """

    ranks: Sequence[Ranks] = ()
    found: list[Tensor] = field(default_factory=list)


@dataclass(eq=False)
class Scaling:
    """One-element float32 tensors, set on the optimizer around `step()`.

    Attributes:
        grad_scale: what the loss was multiplied by; None where the gradients were unscaled already.
        found_inf: not 0 where a gradient is not finite: then nothing moves. Replaced where ranks have to agree on it.
        search: there where `found_inf` is yet to be found out, by the statistics launch, which writes it.
    """

    grad_scale: Tensor | None
    found_inf: Tensor | None
    search: Search | None = None

    @classmethod
    def of(cls, attributes: dict[str, Any]) -> Scaling | None:
        """Read what a scaler set among an optimizer's attributes; None where no scaler is at work."""
        grad_scale, found_inf = attributes.get("grad_scale"), attributes.get("found_inf")
        if "search" in attributes:
            return cls(_scalar("grad_scale", grad_scale), None, attributes["search"])
        if grad_scale is None and found_inf is None:
            return None
        if isinstance(found_inf, int) and found_inf == 0:
            found_inf = None  # what torch's scaler makes of no gradients at all
        return cls(_scalar("grad_scale", grad_scale), _scalar("found_inf", found_inf))

    def on(self, device: torch.device) -> Scaling:
        """The same on another device; with a `found_inf` of its own, of 0, where it is to be found out."""
        grad_scale, found_inf = (
            t if t is None else move(t, device) for t in (self.grad_scale, self.found_inf)
        )
        if self.search is not None:
            found_inf = torch.zeros((), device=device)
        return Scaling(grad_scale, found_inf, self.search)

    def says_skip(self) -> bool:
        """Tell whether it is known already that the step is to be skipped; waits for the device."""
        return self.search is None and self.found_inf is not None and bool(self.found_inf)

    @property
    def last_found(self) -> Tensor | None:
        """`found_inf` of the last step that was taken with this; None where it had no gradients to look at."""
        if self.search is None:
            return self.found_inf
        return self.search.found[-1] if self.search.found else None

    @property
    def sought(self) -> Tensor | None:
        """`found_inf` where the statistics launch is to write it, else None."""
        return None if self.search is None else self.found_inf


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on another device; waits only where the host is to read it, which it could too early otherwise."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def _scalar(name: str, value: Any) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise TypeError(f"optimizer: {name} must be a tensor of one element, got {value!r}")
    return value.detach().to(torch.float32)
