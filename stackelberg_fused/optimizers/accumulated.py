"""Gradients that were accumulated where `step(closure)` of an alternating optimizer would clear them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..groups.param_groups import param_label
from ..memory import device_runtime
from ..memory.sharding import local_tensor
from ..torch_compat import version_of

Groups = Iterable[dict[str, Any]]


class AccumulatedGradients:
    """Tells gradients that were written since the last step or zeroing from those that were left over.

    A gradient was left over if it is still the tensor that it was, with the version counter that it had. Values are
    read only where somebody else wrote to one, to see whether it was cleared (`model.zero_grad(set_to_none=False)`):
    no step of an ordinary loop waits for a device.

    Attributes:
        is_unsure: a step may have moved parameters, and its gradients were not taken for left over ones: it is at it,
            or an interrupt came between. Then none is refused, rather than one that nobody accumulated.
        is_used: a step was given a closure; until then only steps of one player are taken, which note a single
            gradient of each role, so that they cost no more in this mode: a backward pass writes it with the others.
    """

    def __init__(self) -> None:
        # by id of a parameter. Weak: a gradient that is set to None has to be freed
        self._left: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._is_stepping = False
        self.is_unsure = self.is_used = False
        # by role: the id of the parameter whose gradient stands for all; None: each stands for itself
        self._standing: dict[str, int] | None = None

    def note(self, groups: Groups) -> None:
        """Take the gradients of now for left over ones."""
        if self._is_stepping:
            return
        left = self._left
        for group in groups:
            for param in group["params"]:
                grad = param.grad
                if grad is not None:
                    left[id(param)] = weakref.ref(grad), version_of(grad)

    def note_all(self, groups: Groups) -> None:
        """Take the gradients of all groups for left over ones, after a step that is no part of a step."""
        if self._is_stepping:
            return
        if self.is_used:
            self._standing = None
            self.note(groups)
        else:
            self._note_one_of_each_role(groups)
        self.is_unsure = False

    def note_cleared(self, groups: Groups) -> None:
        """As `note_all`, of gradients that were cleared: those that are zero again need not be noted to be seen."""
        if self.is_used:
            self.note_all(groups)
        else:
            self._standing, self.is_unsure = None, False

    def _note_one_of_each_role(self, groups: Groups) -> None:
        self._standing = standing = {}
        for group in groups:
            role = group["role"]
            if role in standing:
                continue
            for param in group["params"]:
                grad = param.grad
                if grad is not None:
                    standing[role] = id(param)
                    self._left[id(param)] = weakref.ref(grad), version_of(grad)
                    break

    def forget(self, param: Tensor) -> None:
        """Drop what is known of a parameter that is none of the optimizer's any more."""
        self._left.pop(id(param), None)

    def left_over(self, groups: Groups) -> list[dict[str, Any]]:
        """A group of the parameters whose gradients are left over; to be noted again where these are moved."""
        params = [param for group in groups for param in group["params"]]
        return [{"params": [p for p in params if p.grad is not None and self._is_left(p, p.grad)]}]

    @contextmanager
    def stepping(self, groups: Groups) -> Iterator[None]:
        """Whatever is written within is left over afterwards, also where an error ends it."""
        self.is_unsure = self.is_used = self._is_stepping = True
        try:
            yield
        finally:
            self._is_stepping = False
            self.note_all(groups)

    def refuse(self, groups: Groups) -> None:
        """Raise RuntimeError, naming the parameter, for a gradient that was accumulated."""
        if self.is_unsure:
            return
        written = list(self._written(groups))
        on_gpu = any(grad.is_cuda for _, grad in written)
        if on_gpu and device_runtime.is_capturing():  # nothing can be read now
            return
        for label, grad in written:
            if _is_nonzero(grad):
                raise RuntimeError(
                    "mode='alternating': step(closure) clears gradients before each of its two evaluations, and "
                    f"{label} has one that was accumulated since the last step. Evaluate the whole batch in the "
                    "closure: call backward() there for each microbatch, of its share of the loss (with Lightning: "
                    "accumulate_grad_batches=1), or take alternating_step(..., microbatches=n). If it is not wanted, "
                    "call the optimizer's zero_grad() before the step"
                )

    def _written(self, groups: Groups) -> Iterator[tuple[str, Tensor]]:
        """Gradients that are not what they were, with their parameters' names in messages."""
        for index, group in enumerate(groups):
            stands = None if self._standing is None else self._standing.get(group["role"])
            for position, param in enumerate(group["params"]):
                grad = param.grad
                if grad is None or stands not in (None, id(param)):
                    continue
                if not self._is_left(param, grad):
                    yield param_label(index, group, position), grad

    def _is_left(self, param: Tensor, grad: Tensor) -> bool:
        now = version_of(grad)
        left, version = self._left.get(id(param), (None, -1))
        return left is not None and left() is grad and version == now


def _is_nonzero(grad: Tensor) -> bool:
    values = local_tensor(grad).detach()
    return bool((values._values() if values.is_sparse else values).count_nonzero())
