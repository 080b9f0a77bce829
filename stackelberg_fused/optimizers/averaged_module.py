"""The averages of a module's weights as a module of their own, for target networks and teachers."""

from __future__ import annotations

import copy
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from ..memory.presence import is_abstract
from ..memory.sharding import is_sharded
from ..torch_compat import disable_dynamo
from .base import StackelbergOptimizer

Module = TypeVar("Module", bound=nn.Module)


class _Place(NamedTuple):
    """Where a tensor of the averaged module is held, where that of the trained one is, and its names in both."""

    own: dict[str, Any]
    trained: dict[str, Any]
    name: str
    label: str


class AveragedModule(Generic[Module]):
    """A module that holds the averages (`ema_decay`) of another one's weights; steps of the optimizer keep it current.

    For what reads averages in every step, where `ema_weights()` would exchange them forth and back: target networks of
    reinforcement learning, teachers, evaluation beside training.

    Its parameters lie in the memory of the optimizer's averages, so that a step moves both, in its launch, and nothing
    is copied. Before the first step the averages are the weights. They need no gradient. Whatever becomes of the
    optimizer's tensors (a loaded state dict, `replace`, another group) is noticed when it is called or asked for
    `module`. Averages of 16-bit weights, which have 32 bits, are rounded to copies of 16 bits each time.

    Args:
        optimizer: a Stackelberg optimizer; all trained parameters of `module` are in groups with an `ema_decay`.
        module: the one that is trained; it is copied once.
        buffers: "shared": those of `module`, whatever they are at the call; a call in training mode writes to them, so
            put a target with batch norms in `target.module.eval()`. "own": a copy, which changes only when this module
            itself is called in training mode, or is written to.

    Raises:
        TypeError: no Stackelberg optimizer or no module; or a parameter is sharded (use `ema_weights()`).
        ValueError: a trained parameter is in no group, or in one without `ema_decay`; or another `buffers`.

    Example:
        >>> critics = nn.Linear(4, 2)
        >>> opt = sf.StackelbergAdam(critics.parameters(), lr=1e-3, ema_decay=0.995)
        >>> target = sf.AveragedModule(opt, critics)
        >>> target(torch.ones(3, 4)).shape  # needs no gradient
        torch.Size([3, 2])
    """

    def __init__(
        self,
        optimizer: StackelbergOptimizer,
        module: Module,
        *,
        buffers: Literal["shared", "own"] = "shared",
    ) -> None:
        if not isinstance(optimizer, StackelbergOptimizer):
            inside = isinstance(getattr(optimizer, "optimizer", None), StackelbergOptimizer)
            advice = "; pass what it wraps, its .optimizer" if inside else ""
            raise TypeError(
                "AveragedModule: optimizer must be a Stackelberg optimizer, got "
                f"{type(optimizer).__name__}{advice}"
            )
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"AveragedModule: module must be an nn.Module, got {type(module).__name__}"
            )
        if buffers not in ("shared", "own"):
            raise ValueError(f"AveragedModule: buffers must be 'shared' or 'own', got {buffers!r}")
        self._optimizer = optimizer.unwrapped()
        for label, param in module.named_parameters():
            self._check(label, param)
        self._module = copy.deepcopy(module).requires_grad_(False)
        self._parts = [(m._modules, dict(m._modules)) for m in module.modules()]
        self._params = _places(self._module, module, "_parameters")
        self._buffers = _places(self._module, module, "_buffers") if buffers == "shared" else []
        self._follow()

    @property
    def module(self) -> Module:
        """The module with the averages of now, to call its methods or to save it.

        What is written to its parameters, as by `load_state_dict`, is written to the averages: before the first step,
        and where they are frozen, to the weights. Of 16-bit weights it is written to a copy, and lost at the next call.

        Raises:
            RuntimeError: within `ema_weights()`, where the averages hold weights; or a layer of the trained module was
                exchanged, added or removed.
            ValueError: a parameter is not averaged any more.
        """
        self._follow()
        return self._module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module with the averages of now; raises as `module`."""
        self._follow()
        return self._module(*args, **kwargs)

    @disable_dynamo
    def _follow(self) -> None:
        """Have the module hold the averages and buffers of now: addresses are compared, and tell of anything new."""
        shared = self._optimizer._shared
        shared.refuse_averages("AveragedModule")
        state = shared.state
        if any(now != before for now, before in self._parts):
            raise RuntimeError(
                "AveragedModule: layers of the trained module were exchanged, added or removed since this one was "
                "made; make it anew"
            )
        for own, trained, name, label in self._params:
            param, mine = trained[name], own[name]
            entry = state.get(param)
            average = None if entry is None else entry.get("ema")
            if average is None:  # no step yet, or frozen
                self._check(label, param)
                average = param.data
            if average.dtype is not param.dtype:
                mine.data = average.to(param.dtype)
            elif mine.data_ptr() != average.data_ptr() or mine.shape != average.shape:
                mine.data = average
        for own, trained, name, _ in self._buffers:
            own[name] = trained[name]

    def _check(self, label: str, param: Tensor) -> None:
        """Raise unless a parameter has memory that can be shared, and is averaged or frozen."""
        if is_sharded(param) or is_abstract(param):
            raise TypeError(
                f"AveragedModule: parameter {label!r} is sharded or has no memory of its own; its average can be read "
                "within ema_weights()"
            )
        if not param.requires_grad:
            return
        for group in self._optimizer.param_groups:
            if any(param is member for member in group["params"]):
                if group["ema_decay"] is None:
                    raise ValueError(
                        f"AveragedModule: parameter {label!r} is in a param group without ema_decay"
                    )
                return
        raise ValueError(f"AveragedModule: parameter {label!r} is in no param group")


def _places(own: nn.Module, trained: nn.Module, kind: str) -> list[_Place]:
    """Return where a module and its copy hold their parameters ("_parameters") or buffers, wherever they have any."""
    places = []
    for (path, part), (_, source) in zip(own.named_modules(), trained.named_modules(), strict=True):
        for name, tensor in getattr(source, kind).items():
            if tensor is not None:
                label = f"{path}.{name}" if path else name
                places.append(_Place(getattr(part, kind), getattr(source, kind), name, label))
    return places
