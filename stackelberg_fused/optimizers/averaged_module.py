"""The averages of a module's weights as a module of their own, for target networks and teachers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Generic, TypeVar, get_args

from torch import nn

from .averaged_following import (
    WRITTEN,
    Buffers,
    Following,
    check,
    checked_decay,
    set_decay,
)
from .averaged_places import check_same, check_start
from .base import StackelbergOptimizer
from .player import Player

Module = TypeVar("Module", bound=nn.Module)


class AveragedModule(Generic[Module]):
    """A module that holds the averages (`ema_decay`) of another one's weights; steps of the optimizer keep it current.

    For what reads averages in every step, where `ema_weights()` would exchange them forth and back: target networks of
    reinforcement learning, teachers, evaluation beside training.

    Its parameters lie in the memory of the optimizer's averages, so that a step moves both, in its launch, and nothing
    is copied. Before the first step the averages are the weights. They need no gradient. Whatever becomes of the
    optimizer's tensors (a loaded state dict, `replace`, another group) is noticed when it is called or asked for
    `module`. Averages of 16-bit weights, which have 32 bits, are rounded to copies of 16 bits each time.

    Args:
        optimizer: a Stackelberg optimizer, or a player of one; all trained parameters of `module` are in groups with an
            `ema_decay`, or `decay` gives them one.
        module: the one that is trained; it is copied once.
        into: a module that there is already, to hold the averages in place of the copy. Its parameters have the names,
            shapes and values of those of `module`, and move to the averages' memory at the first step. It is current
            after each step and load without being asked for here.
        decay: becomes the `ema_decay` of the groups of the module's parameters, whatever else is in these: a number in
            [0, 1], or a function that returns it for a step, by the number of steps taken before, from 0.
        buffers: "shared": those of `module`, whatever they are at the call; a call in training mode writes to them, so
            put a target with batch norms in `target.module.eval()`. "own": a copy, or those of `into`, which change
            only when this module itself is called in training mode, or is written to. "copied": the same, and each
            step copies those of `module` into them. "averaged": each step averages them as it does weights, but for
            integers, which it copies. No state dict of the optimizer has them.

    Raises:
        TypeError: no Stackelberg optimizer or no module; or a parameter is sharded (use `ema_weights()`); or `decay` is
            no number.
        ValueError: a trained parameter is in no group, or in one without `ema_decay`; another `buffers`; a parameter of
            `into` is missing, one more, `module`'s own or another one; `decay` lies outside of [0, 1], or is a function
            where a group is `capturable`; buffers are to be averaged, and groups have several decays.

    Example:
        >>> critics = nn.Linear(4, 2)
        >>> opt = sf.StackelbergAdam(critics.parameters(), lr=1e-3, ema_decay=0.995)
        >>> target = sf.AveragedModule(opt, critics)
        >>> target(torch.ones(3, 4)).shape  # needs no gradient
        torch.Size([3, 2])
    """

    def __init__(
        self,
        optimizer: StackelbergOptimizer | Player,
        module: Module,
        *,
        into: Module | None = None,
        decay: float | Callable[[int], float] | None = None,
        buffers: Buffers = "shared",
    ) -> None:
        self._optimizer = _of_the_library(optimizer)
        for name, value in (("module", module), ("into", into)):
            if not isinstance(value, nn.Module) and (name, value) != ("into", None):
                raise TypeError(
                    f"AveragedModule: {name} must be an nn.Module, got {type(value).__name__}"
                )
        if buffers not in get_args(Buffers):
            one_of = ", ".join(map(repr, get_args(Buffers)))
            raise ValueError(f"AveragedModule: buffers must be one of {one_of}, got {buffers!r}")
        self._optimizer._shared.refuse_averages("AveragedModule")
        for label, param in module.named_parameters():
            check(self._optimizer, label, param, needs_decay=decay is None)
        if into is not None:
            self._check_into(into, module, buffers)
        self._module = copy.deepcopy(module) if into is None else into
        schedule = decay if callable(decay) else None
        given = into is not None
        self._following = Following(self._module, module, given, schedule, buffers)
        self._begin(decay)
        self._module.requires_grad_(False)
        if given and buffers in WRITTEN:
            self._following.write_buffers(None)
        self._following.watch(self._optimizer, self._module)
        self._following.follow(self._optimizer)

    @property
    def module(self) -> Module:
        """The module with the averages of now, to call its methods or to save it.

        What is written to its parameters, as by `load_state_dict`, is written to the averages: before the first step,
        and where they are frozen, to the weights. Of 16-bit weights, and before the first step of a module that was
        given as `into`, it is written to a copy, and lost at the next call.

        Raises:
            RuntimeError: within `ema_weights()`, where the averages hold weights; or a layer of the trained module was
                exchanged, added or removed.
            ValueError: a parameter is not averaged any more.
        """
        self._following.follow(self._optimizer)
        return self._module

    @property
    def decay(self) -> float:
        """The decay of the next step; set it as often as you like, and the `ema_decay` of the groups is set.

        Raises:
            ValueError: groups have several decays, or none; or it is set to a number outside of [0, 1].
            TypeError: it is set to what is no number.
        """
        found = {group["ema_decay"] for group in self._following.groups(self._optimizer)}
        if len(found) != 1 or None in found:
            raise ValueError(
                f"AveragedModule: its param groups have no one decay: {found or 'none'}"
            )
        return float(found.pop())

    @decay.setter
    def decay(self, decay: float) -> None:
        set_decay(self._following.groups(self._optimizer), checked_decay(decay))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module with the averages of now; raises as `module`."""
        self._following.follow(self._optimizer)
        return self._module(*args, **kwargs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._following.watch(
            self._optimizer, self._module
        )  # hooks are no part of an optimizer that is copied

    def _check_into(self, into: nn.Module, module: nn.Module, buffers: Buffers) -> None:
        """Raise ValueError unless a module can take the averages of another one."""
        check_same(into, module, "parameters")
        if buffers != "own":
            check_same(into, module, "buffers")
        state = self._optimizer._shared.state
        own = dict(into.named_parameters(remove_duplicate=False))
        for label, param in module.named_parameters():
            if "ema" not in state.get(param, {}):
                check_start(label, own[label], param)

    def _begin(self, decay: float | Callable[[int], float] | None) -> None:
        """Set the decay of the coming step; modifies nothing where it raises."""
        following, optimizer = self._following, self._optimizer
        groups = following.groups(optimizer)
        if following.schedule is not None and any(group.get("capturable") for group in groups):
            raise ValueError(
                "AveragedModule: decay cannot be a function with capturable=True: a captured graph keeps a number"
            )
        following.count = following.taken(optimizer)
        if decay is not None:
            set_decay(groups, checked_decay(decay(following.count) if callable(decay) else decay))
        elif following.buffers == "averaged":
            _ = self.decay  # there is one


def _of_the_library(optimizer: Any) -> StackelbergOptimizer:
    """The optimizer, if it is one of this library's, a player of one, or a wrapper that imitates its class."""
    if isinstance(optimizer, Player):
        optimizer = optimizer._owner
    if not isinstance(optimizer, StackelbergOptimizer):
        inside = isinstance(getattr(optimizer, "optimizer", None), StackelbergOptimizer)
        advice = "; pass what it wraps, its .optimizer" if inside else ""
        raise TypeError(
            "AveragedModule: optimizer must be a Stackelberg optimizer, got "
            f"{type(optimizer).__name__}{advice}"
        )
    return optimizer.unwrapped()
