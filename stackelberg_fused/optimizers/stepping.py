"""The step of an optimizer: what comes before and after the launches that the engine makes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..groups.option_types import Role
from ..groups.param_groups import ROLES
from ..layout.scaling import Scaling
from ..layout.table import RebuildNeeded
from ..torch_compat import (
    disable_dynamo,
    global_post_hooks,
    global_pre_hooks,
    profiler,
    wrap_step,
)
from .alternate import alternate
from .engine_holder import EngineHolder
from .shared import busy


class Stepping(EngineHolder):
    """Steps both players, or one of them."""

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
            zero_grad: and then clear the gradients of these players, as `zero_grad` does, but in the same launch. A
                gradient scaler that skips the step clears nothing, unless `fused=True`.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError, TypeError, RuntimeError: a gradient, a rebound parameter or an edited setting does not fit;
                names the parameter or group. Nothing was modified.
            RuntimeError: another thread is in a step of this optimizer. Nothing was modified.
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
            self._shared.from_scaler.clear()
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
        checks_all: bool = False,
    ) -> Any:
        """As `step`, which nobody observes.

        Args:
            checks_all: raise for gradients of the other player too, which is to move next.
        """
        shared, mine = self._shared, object()
        running = shared.running
        try:
            if role is not None:
                check_role(role)
            if shared.is_swapped:  # before the closure adds to gradients
                shared.refuse_averages("step()")
            alternates = role is None and shared.options["mode"] == "alternating"
            if alternates and not (closure is None and self._asks_for_state()):
                return alternate(self, closure, zero_grad)
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            if running.setdefault("call", mine) is not mine:
                raise busy("step()")
            self._launch(role, zero_grad, checks_all)
            del running["call"]
        except BaseException:
            shared.end(mine)
            # a scaler that finds its attributes set takes them for a scale of the optimizer's own
            shared.from_scaler.clear()
            raise
        return loss

    def _asks_for_state(self) -> bool:
        """Tell whether this is no step of training: see `StateRequests`."""
        return self._shared.alone("step()", lambda: self._ready().requests.is_one(None))

    def _launch(self, role: Role | None, zero_grad: bool, checks_all: bool) -> None:
        """Have the engine step; nobody else is at it."""
        shared = self._shared
        if shared.is_swapped:  # meanwhile
            shared.refuse_averages("step()")
        engine = self._ready()
        if role is not None and not any(group["role"] == role for group in shared.param_groups):
            raise ValueError(f"step(role={role!r}): no param group has this role")
        if not shared.stepped and not engine.requests.is_one(role):
            norm = shared.options["max_grad_norm"]
            shared.lost.look_before_stepping(shared.param_groups, norm)
        scaling = Scaling.of(shared.from_scaler) if shared.from_scaler else None
        alternates = shared.options["mode"] == "alternating"
        if alternates:
            shared.accumulated.is_unsure = True
        release = shared.release
        try:
            if release is None:
                last = engine.step(role, shared.limits, scaling, zero_grad, checks_all)
            else:
                last = release.step(engine, role, scaling, checks_all)
        except RebuildNeeded:
            engine = self._build_again()
            if release is None:
                last = engine.step(role, shared.limits, scaling, zero_grad, checks_all)
            else:
                last = release.step(engine, role, scaling, checks_all)
        if last is None:
            return
        shared.last, shared.found_inf = last, None
        if scaling is not None:
            shared.met_scaler, shared.found_inf = True, scaling.last_found
        shared.launches += last[0]
        if len(shared.stepped) < len(ROLES):
            shared.stepped.update(ROLES if role is None else (role,))
        if alternates:
            shared.accumulated.note_all(shared.param_groups)

    def _releasing(self, role: Role) -> AbstractContextManager[None]:
        """With `release="backward"`: within this context gradients of this role are released, whatever the mode."""
        release = self._shared.release
        return nullcontext() if release is None else release.only(role)

    _observed_step = wrap_step(_step)

    @disable_dynamo
    def _untraced_step(self, closure: Callable[[], Any] | None, **how: Any) -> Any:
        """Step outside of the trace of a compiled training step: addresses cannot be traced."""
        return self.step(closure, **how)


def check_role(role: str | None) -> None:
    """Raise ValueError for a role that there is not; None stands for both."""
    if role is not None and role not in ROLES:
        raise ValueError(f"unknown role {role!r}, expected 'body' or 'head'")
