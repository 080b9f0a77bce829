"""Where a module and its averaged one hold their tensors, and what a module has to be to hold the averages."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Place(NamedTuple):
    """Where a tensor of the averaged module is held, where that of the trained one is, and its names in both."""

    own: dict[str, Any]
    trained: dict[str, Any]
    name: str
    label: str

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The tensor of the averaged module, and that of the trained one."""
        return self.own[self.name], self.trained[self.name]


def places(own: nn.Module, trained: nn.Module, kind: str) -> list[Place]:
    """Return where both modules hold their parameters ("_parameters") or buffers ("_buffers"), wherever there are any.

    Args:
        own: has all modules and tensors of `trained`, by the same names.
    """
    found = []
    for path, source in trained.named_modules():
        part = own.get_submodule(path)
        for name, tensor in getattr(source, kind).items():
            if tensor is not None:
                label = f"{path}.{name}" if path else name
                found.append(Place(getattr(part, kind), getattr(source, kind), name, label))
    return found


def check_same(into: nn.Module, trained: nn.Module, kind: str) -> None:
    """Raise ValueError unless a module has parameters ("parameters") or buffers of the same names and kinds as another.

    What is one tensor there is one here. No parameter may be the other module's own.
    """
    mine, theirs = (_named(module, kind) for module in (into, trained))
    for known, other, name in ((mine, theirs, "module"), (theirs, mine, "into")):
        missing = [label for label in other if label not in known]
        if missing:
            where = "into" if name == "module" else "module"
            raise ValueError(
                f"AveragedModule: {name} has {kind} that {where} has not: {', '.join(missing[:5])}"
            )
    twins: dict[int, Tensor] = {}
    for label, tensor in mine.items():
        other_tensor = theirs[label]
        if twins.setdefault(id(tensor), other_tensor) is not other_tensor:
            raise ValueError(
                f"AveragedModule: {label!r} of into has another name too, and that of module has not"
            )
        if tensor is other_tensor and kind == "parameters":
            raise ValueError(
                f"AveragedModule: {label!r} of into is module's own; into must be another one"
            )
        both = [(tuple(t.shape), t.dtype, str(t.device)) for t in (tensor, other_tensor)]
        if both[0] != both[1]:
            raise ValueError(
                f"AveragedModule: {label!r} of into is {_said(both[0])}, that of module {_said(both[1])}"
            )


def check_start(label: str, own: Tensor, param: Tensor) -> None:
    """Raise ValueError unless a tensor of `into` is what its average begins with."""
    if not torch.equal(own.detach(), param.detach()):
        raise ValueError(
            f"AveragedModule: {label!r} of into differs from that of module, and the averages begin with the weights: "
            "into.load_state_dict(module.state_dict()) first, or load the optimizer's state, which has averages"
        )


def _named(module: nn.Module, kind: str) -> dict[str, Tensor]:
    return dict(getattr(module, f"named_{kind}")(remove_duplicate=False))


def _said(of: tuple[tuple[int, ...], torch.dtype, str]) -> str:
    shape, dtype, device = of
    return f"{list(shape)} {dtype} on {device}"
