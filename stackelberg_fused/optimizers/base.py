"""The base class of the optimizers: `torch.optim` on the outside, one launch for all groups on the inside."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ..engine.across_rebuilds import AcrossRebuilds
from ..engine.clear_gradients import clear_as_torch
from ..engine.state import without_unused_momentum
from ..groups.lost_settings import LostSettings
from ..groups.new_group import completed_group, fill_in
from ..groups.option_types import Role
from ..groups.param_groups import (
    ROLES,
    check_head,
    check_ratio,
    copy_by_role,
)
from ..layout.scaling import Scaling
from ..layout.statistics import ClipLimits, LastStep
from ..layout.table import RebuildNeeded
from ..memory.overlap import check_overlap
from ..torch_compat import (
    UNKNOWN,
    disable_dynamo,
    global_post_hooks,
    global_pre_hooks,
    profiler,
    wrap_step,
)
from .alternate import alternate
from .checkpoint import (
    packed_groups,
    with_exact_values,
    with_rounds_of_now,
)
from .ema_weights import swapped
from .engine_holder import EngineHolder
from .options import ParamGroup, Params, sorted_out
from .player import Player
from .rebuilt import warn_of_lost_options
from .regrouped import regrouped

log = logging.getLogger("stackelberg_fused")


class StackelbergOptimizer(EngineHolder):
    """The base of the three optimizers; not meant to be constructed."""

    # torch.amp.GradScaler: the step unscales and skips itself
    _step_supports_amp_scaling = True
    # where torch's constructor sets none of these
    _optimizer_step_pre_hooks = _optimizer_step_post_hooks = UNKNOWN

    def __init__(
        self, params: Params, rule: dict[str, Any], options: Mapping[str, Any], known: type
    ) -> None:
        # params: tensors, (name, tensor) pairs, or group dicts; rule: "rule", and its settings that a class takes by
        # position; options: the keyword arguments; known: the TypedDict of those that the class takes, see options.py
        whole, of_groups = sorted_out(type(self).__name__, options, known)
        defaults = copy_by_role({**rule, **of_groups})
        grads, mode, backend = whole["grads"], whole["mode"], whole["backend"]
        if grads not in ("gather", "flat"):
            raise ValueError(f"unknown grads {grads!r}, expected 'gather' or 'flat'")
        if mode not in ("simultaneous", "alternating"):
            raise ValueError(f"unknown mode {mode!r}, expected 'simultaneous' or 'alternating'")
        if grads == "flat" and defaults["differentiable"]:
            raise ValueError("differentiable=True goes with grads='gather' only")
        self._options: dict[str, Any] = {
            "grads": grads,
            "mode": mode,
            "head_lr_ratio": check_ratio(whole["head_lr_ratio"]),
            "backend": backend,
            "flatten": bool(whole["flatten"]) and not defaults["differentiable"],
            "differentiable": bool(defaults["differentiable"]),
        }
        self.max_grad_norm = whole["max_grad_norm"]
        if defaults["differentiable"]:
            if backend not in ("auto", "reference"):
                raise ValueError("differentiable=True needs backend='reference'")
            self._options["backend"] = "reference"
        for name in ("foreach", "fused"):
            if defaults.get(name) is not None:
                log.debug("%s=%r is ignored: every backend is one launch", name, defaults[name])
        self._across_rebuilds = AcrossRebuilds()
        self.launches = 0
        self._met_scaler = False
        self._lost = LostSettings(options)
        self._reset_transients()
        super().__init__(cast("Iterable[Any]", params), {"role": "body", **defaults})
        check_head(self.param_groups)
        check_overlap(self._labelled(self.param_groups))
        self._engine = self._build()
        self._lost.look_at_rates(self.param_groups, defaults["lr"])
        warn_of_lost_options(self, options)
        if mode == "alternating":
            self._accumulated.note(self.param_groups)
        log.info("%s: backend %s", type(self).__name__, self.backend)

    @property
    def backend(self) -> str:
        """The backend in use; several, joined by "+", where devices or dtypes need different ones."""
        return self._current().backend

    @property
    def max_grad_norm(self) -> float | dict[Role, float] | None:
        """The norms to which gradients are clipped; may be set between steps.

        Raises:
            ValueError, TypeError: neither None, nor a number >= 0, nor a dict of such by role.
        """
        value = self._options["max_grad_norm"]
        return dict(value) if isinstance(value, dict) else value

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | dict[Role, float] | None) -> None:
        if value is not None and self._options["differentiable"]:
            raise ValueError(
                "max_grad_norm does not go with differentiable=True: clip with torch.nn.utils.clip_grad_norm_"
            )
        self._limits = ClipLimits.of(value)
        self._options["max_grad_norm"] = dict(value) if isinstance(value, dict) else value

    @property
    def last_step(self) -> LastStep:
        """The report of the last step; nothing waits for the device until one of its tensors is read."""
        return LastStep.of(*self._last, self._found_inf)

    @property
    def flat_grads(self) -> dict[str, list[Tensor]]:
        """With `grads="flat"`: by role, one contiguous buffer for each device and dtype, to be reduced before a step.

        They stay the same tensors until parameters are added, frozen, unfrozen or moved. Gradients lie at multiples of
        64 elements, in the order of the groups, with zeros between them. Asking for them puts gradients that lie
        elsewhere, as after `model.zero_grad()`, back in their place.

        Raises:
            RuntimeError: without `grads="flat"`, when there are no buffers and a reduction would be of nothing.
        """
        if self._options["grads"] != "flat":
            raise RuntimeError(
                "flat_grads needs an optimizer with grads='flat'; this one reads each parameter's own .grad"
            )
        found = self._current().flat_gradients()
        return {role: [b[role] for b in found if role in b] for role in ROLES}

    def ema_weights(self) -> AbstractContextManager[None]:
        """Within this context the parameters hold their averages (`ema_decay`), for evaluation or to be saved.

        On leaving, the weights are back to the bit. A parameter that has not taken a step has no average yet and stays
        as it is.

        Raises:
            RuntimeError: no group has an `ema_decay`, or the parameters hold their averages already. Within the
                context: `step`, `state_dict` and whatever else would take averages for weights.
        """
        self._refuse_averages("ema_weights()")
        if all(group.get("ema_decay") is None for group in self.param_groups):
            raise RuntimeError("ema_weights(): no param group has an ema_decay")
        return self._swapped()

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        self._refuse_averages("ema_weights()")
        note = partial(setattr, self, "_is_swapped")
        with swapped(self.param_groups, self.state, note):
            yield

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.Optimizer.state_dict`; averages of the weights are in it."""
        self._refuse_averages("state_dict()")
        packed = super().state_dict()
        if "param_groups" in packed:
            packed["param_groups"] = packed_groups(packed["param_groups"])
        if "state" in packed:  # a hook may have made anything of it
            packed = with_rounds_of_now(packed, self._rounds())
            if self._met_scaler:
                packed["state"] = without_unused_momentum(packed["state"])
        return packed

    @disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`; parameters with names may have been saved in other groups."""
        self._refuse_averages("load_state_dict()")
        # after the hooks of others, who expect tensors
        hook = self.register_load_state_dict_pre_hook(
            lambda _, loaded: regrouped(with_exact_values(loaded), self.param_groups)
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()

    def zero_grad(self, set_to_none: bool = True, *, role: Role | None = None) -> None:
        """As `torch.optim.Optimizer.zero_grad`; with `grads="flat"` gradients become zero and stay in their buffers.

        Args:
            set_to_none: as in torch; not asked for flat gradients.
            role: "body" or "head" clears the gradients of that player alone.
        """
        self._check_role(role)
        if self._options["grads"] == "flat":
            self._current().zero_flat(role)
        elif role is None:
            super().zero_grad(set_to_none)
        else:
            clear_as_torch(self.player(role).param_groups, set_to_none)
        if self._options["mode"] == "alternating":
            cleared = self.param_groups if role is None else self.player(role).param_groups
            self._accumulated.note(cleared)

    def player(self, role: Role) -> Player:
        """The groups of a role as an optimizer of their own, for schedulers and gradient scalers; always the same one.

        A scaler unscales, checks and skips each player on its own: `scaler.step(opt.player("head"))`, then the
        body's, then one `scaler.update()`.

        Raises:
            ValueError: neither "body" nor "head".
        """
        if role is None:
            raise ValueError("player() needs a role, 'body' or 'head'")
        self._check_role(role)
        if role not in self._players:
            self._players[role] = Player(self, role)
        return self._players[role]

    def _expect_equal_rates(self) -> None:
        """Do not warn of equal rates: a scheduler makes them equal on purpose."""
        self._across_rebuilds.watch.expect_equal()

    @staticmethod
    def _check_role(role: str | None) -> None:
        if role is not None and role not in ROLES:
            raise ValueError(f"unknown role {role!r}, expected 'body' or 'head'")

    @disable_dynamo
    def add_param_group(self, param_group: dict[str, Any] | ParamGroup) -> None:
        """Add a param group, as `torch.optim.Optimizer.add_param_group`; it may carry `role` and `rule`.

        Raises:
            ValueError, TypeError: names the group or parameter; nothing was modified.
        """
        self._refuse_averages("add_param_group()")
        given = cast("dict[str, Any]", param_group)
        if isinstance(given, dict) and "params" in given:
            ratio = self._options["head_lr_ratio"]
            completed = completed_group(given, self.param_groups, self.defaults, ratio)
            if self._engine is not None:
                check_head([*self.param_groups, completed], len(self.param_groups))
                check_overlap(self._labelled([*self.param_groups, completed]))
            self._lost.note(given)
            fill_in(given, completed)
        super().add_param_group(given)
        if self._engine is not None:
            try:
                self._build_again()
            except Exception:
                self.param_groups.pop()
                raise

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        role: Role | None = None,
        zero_grad: bool = False,
    ) -> Any:
        """Perform one step: one launch per device and dtype, for any number of groups.

        Args:
            closure: reevaluates the model and returns the loss; called with gradients enabled. With
                `mode="alternating"` it is called twice, each time after gradients were cleared: first the head
                moves, then the body; `last_step` is the body's.
            role: "body" or "head" updates that player alone; None both, simultaneously.
            zero_grad: and then clear the gradients of these players, as `zero_grad` does, but in the same launch.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError, TypeError, RuntimeError: a gradient, a rebound parameter or an edited setting does not fit;
                names the parameter or group. Nothing was modified.
        """
        if torch.compiler.is_compiling():
            return self._untraced_step(closure, role=role, zero_grad=zero_grad)
        observed = (
            profiler._is_profiler_enabled
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or global_pre_hooks
            or global_post_hooks
        )
        if not observed:
            return self._step(closure, role=role, zero_grad=zero_grad)
        arguments = () if closure is None else (closure,)  # a closure comes to hooks by position
        how: dict[str, Any] = {} if role is None else {"role": role}
        if zero_grad:
            how["zero_grad"] = True
        try:
            return self._observed_step(*arguments, **how)
        except BaseException:  # of a hook, before our own step could
            self._forget_scaler()
            raise

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Leave `step` unwrapped; torch calls this to wrap the step of every class in hooks and a profiler range.

        The wrapper costs more than the rest of the step where there are few parameters, so `step` takes it only where
        somebody looks; a subclass that overrides `step` comes through here by `super().step()`.
        """
        return func

    def _step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        role: Role | None = None,
        zero_grad: bool = False,
    ) -> Any:
        try:
            if self._is_swapped:
                self._refuse_averages("step()")
            if role is not None:
                self._check_role(role)
            alternates = self._options["mode"] == "alternating"
            if alternates and role is None:
                return alternate(self, closure, zero_grad)
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            engine = self._ready()
            if role is not None and not any(group["role"] == role for group in self.param_groups):
                raise ValueError(f"step(role={role!r}): no param group has this role")
            if not self._stepped:
                self._lost.look(self.param_groups, self.defaults["lr"], self.max_grad_norm)
            attributes = self.__dict__
            is_scaled = "found_inf" in attributes or "grad_scale" in attributes
            scaling = Scaling.of(attributes) if is_scaled else None
            try:
                self._last = engine.step(role, self._limits, scaling, zero_grad)
            except RebuildNeeded:
                self._last = self._build_again().step(role, self._limits, scaling, zero_grad)
        except BaseException:
            self._forget_scaler()
            raise
        self._met_scaler |= scaling is not None
        self._found_inf = None if scaling is None else scaling.found_inf
        self.launches += self._last[0]
        if len(self._stepped) < len(ROLES):
            self._stepped.update(ROLES if role is None else (role,))
        if alternates:
            self._accumulated.note(self.param_groups)
        return loss

    def _forget_scaler(self) -> None:
        """Drop a scaler's attributes after an error: a scaler that finds them set takes them for a scale of its own."""
        for name in ("grad_scale", "found_inf"):
            self.__dict__.pop(name, None)

    _observed_step = wrap_step(_step)

    @disable_dynamo
    def _untraced_step(self, closure: Callable[[], Any] | None, **how: Any) -> Any:
        """Step outside of the trace of a compiled training step: addresses cannot be traced."""
        return self.step(closure, **how)
