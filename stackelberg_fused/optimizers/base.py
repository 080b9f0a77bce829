"""The base class of the optimizers: `torch.optim` on the outside, one launch for all groups on the inside."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

from torch import Tensor

from ..backends.interrupts import HeldSignals
from ..engine.clear_gradients import clear_as_torch
from ..engine.state import without_unused_momentum
from ..groups.describe import MOST_IN_FULL, table_of
from ..groups.lost_settings import LostSettings
from ..groups.new_group import Members, completed_group, fill_in
from ..groups.option_types import Role
from ..groups.param_groups import (
    ROLES,
    check_ratio,
    copy_by_role,
)
from ..memory.overlap import check_overlap
from ..torch_compat import disable_dynamo
from .checkpoint import (
    packed_groups,
    with_exact_values,
    with_rounds_of_now,
)
from .ema_weights import AverageSwap
from .options import ParamGroup, Params, sorted_out
from .player import Player
from .rebuilt import register, warn_of_lost_options
from .regrouped import regrouped
from .release_refused import check_release
from .replacing import Replacing
from .shared import Shared
from .stepping import check_role

log = logging.getLogger("stackelberg_fused")


class StackelbergOptimizer(Replacing):
    """The base of the three optimizers; not meant to be constructed."""

    def __init__(
        self, params: Params, rule: dict[str, Any], options: Mapping[str, Any], known: type
    ) -> None:
        # params: tensors, (name, tensor) pairs, or group dicts; rule: "rule", and its settings that a class takes by
        # position; options: the keyword arguments; known: the TypedDict of those that the class takes, see options.py
        of_optimizer, of_groups = sorted_out(type(self).__name__, options, known)
        defaults = copy_by_role({**rule, **of_groups})
        self._shared = Shared(weakref.ref(self), _checked_options(of_optimizer, defaults))
        self._shared.members = Members()
        self._make_release()
        self._shared.lost = lost = LostSettings(options)
        self._players = {}
        self.max_grad_norm = of_optimizer["max_grad_norm"]
        super().__init__(cast("Iterable[Any]", params), {"role": "body", **defaults})
        self._shared.members = None  # from now on groups may be edited
        self._complete_hooks()
        self._step_supports_amp_scaling = bool(defaults.get("fused"))
        check_overlap(self._labelled(self.param_groups))
        self._build()
        register(self)
        lost.look_at_groups(self.param_groups, defaults["lr"], of_optimizer["max_grad_norm"])
        warn_of_lost_options(self, options)
        if of_optimizer["mode"] == "alternating":
            self._shared.accumulated.note(self.param_groups)
        log.info("%s: backend %s", type(self).__name__, self.backend)

    @property
    def backend(self) -> str:
        """The backend in use; several, joined by "+", where devices or dtypes need different ones."""
        return self._shared.alone("backend", lambda: self._current().backend)

    @property
    def flat_grads(self) -> dict[str, list[Tensor]]:
        """With `grads="flat"`: by role, one contiguous buffer for each device and dtype, to be reduced before a step.

        They stay the same tensors until parameters are added, frozen, unfrozen or moved. Gradients lie at multiples of
        64 elements, in the order of the groups, with zeros between them. Asking for them puts gradients that lie
        elsewhere, as after `model.zero_grad()`, back in their place.

        Raises:
            RuntimeError: without `grads="flat"`, when there are no buffers and a reduction would be of nothing.
        """
        if self._shared.options["grads"] != "flat":
            raise RuntimeError(
                "flat_grads needs an optimizer with grads='flat'; this one reads each parameter's own .grad"
            )
        found = self._shared.alone("flat_grads", lambda: self._current().flat_gradients())
        return {role: [b[role] for b in found if role in b] for role in ROLES}

    def ema_weights(self) -> AbstractContextManager[None]:
        """Within this context the parameters hold their averages (`ema_decay`), for evaluation or to be saved.

        On leaving, the weights are back to the bit. A parameter that has not taken a step has no average yet and stays
        as it is.

        Raises:
            RuntimeError: no group has an `ema_decay`, or the parameters hold their averages already. Within the
                context: `step`, `state_dict` and whatever else would take averages for weights.
        """
        self._shared.refuse_averages("ema_weights()")
        if all(group.get("ema_decay") is None for group in self.param_groups):
            raise RuntimeError("ema_weights(): no param group has an ema_decay")
        return self._swapped()

    def accumulate(self, *, role: Role | None = None) -> AbstractContextManager[None]:
        """Within this context gradients accumulate, as they do everywhere without `release="backward"`.

        For all microbatches of a step but the last, beside `no_sync()` of wrappers that reduce gradients:

            with opt.accumulate():
                loss_fn(model(first), target).backward()
            loss_fn(model(last), target).backward()
            opt.step()

        Args:
            role: "body" or "head": only gradients of that player do, as for a step of the other one alone.
        """
        check_role(role)
        release = self._shared.release
        return nullcontext() if release is None else release.holding(role)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        shared = self._shared
        swap = AverageSwap(partial(setattr, shared, "is_swapped"))

        def enter() -> None:
            shared.refuse_averages("ema_weights()")
            swap.enter(shared.param_groups, shared.state)

        try:
            try:
                shared.alone("ema_weights()", enter)
                yield
            finally:  # after an interrupt, too, as it was entered
                swap.leave()
        finally:
            swap.leave()  # nothing happens unless an interrupt ended the first one, or came just before it

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.Optimizer.state_dict`; averages of the weights are in it."""
        self._shared.refuse_averages("state_dict()")
        if self._shared.release is not None:
            self._shared.release.join()
        packed = super().state_dict()
        if "param_groups" in packed:
            packed["param_groups"] = packed_groups(packed["param_groups"])
        if "state" in packed:  # a hook may have made anything of it
            packed = with_rounds_of_now(packed, self._rounds())
            if self._shared.met_scaler:
                packed["state"] = without_unused_momentum(packed["state"])
        return packed

    @disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`; parameters with names may have been saved in other groups.

        Args:
            state_dict: of this class or of torch's namesake.
        """
        self._shared.refuse_averages("load_state_dict()")
        # after the hooks of others, who expect tensors
        hook = self.register_load_state_dict_pre_hook(
            lambda _, loaded: regrouped(with_exact_values(loaded), self.param_groups)
        )
        try:
            super().load_state_dict(state_dict)
            hook.remove()
        except BaseException:
            hook.remove()  # nothing happens if it was removed before an interrupt
            raise

    def __repr__(self) -> str:
        """As torch's; more than a few groups as a table, see `describe`."""
        if len(self.param_groups) <= MOST_IN_FULL:
            return super().__repr__()
        return f"{type(self).__name__} (\n{table_of(self.param_groups)}\n)"

    def zero_grad(self, set_to_none: bool = True, *, role: Role | None = None) -> None:
        """As `torch.optim.Optimizer.zero_grad`; with `grads="flat"` gradients become zero and stay in their buffers.

        Args:
            set_to_none: as in torch; not asked for flat gradients.
            role: "body" or "head" clears the gradients of that player alone.
        """
        check_role(role)
        if self._shared.options["grads"] == "flat":
            self._shared.alone("zero_grad()", lambda: self._current().zero_flat(role))
        elif role is None:
            # torch's tensors do not bear that one thread reads a gradient as another one sets it: the process dies
            self._shared.alone("zero_grad()", partial(super().zero_grad, set_to_none))
        else:
            groups = self.player(role).param_groups
            self._shared.alone("zero_grad()", partial(clear_as_torch, groups, set_to_none))
        release = self._shared.release
        if release is not None:
            self._shared.launches += release.give_up(role)
        if self._shared.options["mode"] == "alternating":
            accumulated = self._shared.accumulated
            if role is None:
                accumulated.note_cleared(self.param_groups)
            else:
                accumulated.note(self.player(role).param_groups)

    def player(self, role: Role) -> Player:
        """Return the groups of a role as an optimizer, always the same one, for schedulers and gradient scalers.

        A scaler unscales, checks and skips each player on its own: `scaler.step(opt.player("head"))`, then the
        body's, then one `scaler.update()`.

        Args:
            role: "body" or "head".

        Raises:
            ValueError: neither "body" nor "head".
        """
        if role is None:
            raise ValueError("player() needs a role, 'body' or 'head'")
        check_role(role)
        found = self._shared.players.get(role)
        if found is None:
            owner = self.unwrapped()
            owner._players[role] = self._shared.players[role] = found = Player(owner, role)
        return found

    def _expect_equal_rates(self) -> None:
        """Do not warn of equal rates: a scheduler makes them equal on purpose."""
        self._shared.across_rebuilds.watch.expect_equal()

    @disable_dynamo
    def add_param_group(self, param_group: dict[str, Any] | ParamGroup) -> None:
        """Add a param group, as `torch.optim.Optimizer.add_param_group`; it may carry `role` and `rule`.

        Args:
            param_group: a group dict, as in the list that the constructor takes.

        Raises:
            ValueError, TypeError: names the group or parameter; nothing was modified.
            RuntimeError: another thread is in a step; nothing was modified.
        """
        self._shared.refuse_averages("add_param_group()")
        given = cast("dict[str, Any]", param_group)
        self._shared.alone("add_param_group()", lambda: self._add_whole(given))

    def _add_whole(self, given: dict[str, Any]) -> None:
        """Add a group; an interrupt comes before or after."""
        shared, completed = self._shared, None
        if isinstance(given, dict) and "params" in given:
            ratio = shared.options["head_lr_ratio"]
            members = shared.members or Members()
            completed = completed_group(given, shared.param_groups, members, shared.defaults, ratio)
            if shared.engine is not None:
                check_overlap(self._labelled([*shared.param_groups, completed]))
        with nullcontext() if shared.engine is None else HeldSignals():
            if completed is not None:
                shared.lost.note(given)
                fill_in(given, completed)
                shared.accumulated.note([completed])
            self._append(given)
            before = shared.engine
            if before is not None:
                try:
                    self._build_again()
                except BaseException:
                    if shared.engine is before:  # it may also come once all is done
                        shared.param_groups.pop()
                    raise

    def _append(self, group: dict[str, Any]) -> None:
        """Have torch check a group, fill in its defaults and append it."""
        shared = self._shared
        if shared.members is None:
            super().add_param_group(group)
            return
        # torch would compare it with all groups before, as was done by `members` already, in time that does not grow
        groups, shared.param_groups = shared.param_groups, []
        try:
            super().add_param_group(group)
            added = shared.param_groups
        finally:
            shared.param_groups = groups
        groups.extend(added)


def _checked_options(of_optimizer: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The options of the optimizer as a whole, once it is clear that they go together.

    Raises:
        ValueError, TypeError: an option that there is not, or two that do not go together.
        RuntimeError: two of torch's own that do not, as in torch.
    """
    check_release(of_optimizer["release"], of_optimizer, defaults)
    grads, mode, backend = of_optimizer["grads"], of_optimizer["mode"], of_optimizer["backend"]
    if grads not in ("gather", "flat"):
        raise ValueError(f"unknown grads {grads!r}, expected 'gather' or 'flat'")
    if mode not in ("simultaneous", "alternating"):
        raise ValueError(f"unknown mode {mode!r}, expected 'simultaneous' or 'alternating'")
    if defaults.get("fused"):
        for name in ("differentiable", "foreach"):
            if defaults.get(name):
                raise RuntimeError(f"fused=True and {name}=True do not go together")
    if defaults.get("foreach") is not None:
        log.debug("foreach=%r is ignored: every backend is one launch", defaults["foreach"])
    is_differentiable = bool(defaults["differentiable"])
    if is_differentiable:
        if grads == "flat":
            raise ValueError("differentiable=True goes with grads='gather' only")
        if backend not in ("auto", "reference"):
            raise ValueError("differentiable=True needs backend='reference'")
    return {
        "grads": grads,
        "mode": mode,
        "release": of_optimizer["release"],
        "head_lr_ratio": check_ratio(of_optimizer["head_lr_ratio"]),
        "backend": "reference" if is_differentiable else backend,
        "flatten": bool(of_optimizer["flatten"]) and not is_differentiable,
        "differentiable": is_differentiable,
        "max_grad_norm": None,
    }
