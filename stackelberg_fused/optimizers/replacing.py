"""Parameters that grow and shrink in training: `replace` exchanges one, with its state, for another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends.interrupts import HeldSignals
from ..engine.moved_rows import moved_entry
from ..groups.param_groups import param_label
from ..memory.arena import lasting
from ..memory.presence import is_abstract, is_uninitialized
from ..memory.sharding import is_sharded
from ..torch_compat import disable_dynamo
from .stepping import Stepping

Groups = Sequence[dict[str, Any]]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Replacing(Stepping):
    """Replaces parameters."""

    @disable_dynamo
    def replace(
        self, parameter: Tensor, new: Tensor, rows: Tensor | Sequence[int] | None = None
    ) -> None:
        """Train `new` in the place of a parameter, with the state that it has, whose rows may be other ones.

        For models that grow and shrink, as Gaussian splatting does:

            keep = opacity > 0.005  # of the rows of `points`
            opt.replace(points, nn.Parameter(points[keep].detach()), keep.nonzero().flatten())

        Every tensor of the state moves by rows: moments (of 8 bits too), momentum, averages, sums of gradients, masters
        and remainders. The step count stays what it is, so that the bias correction of new rows is that of old ones.
        `new` gets the group, the name and the role of the old one, which is no parameter of the optimizer any more. The
        gradient is not carried over. A model that holds the old one has to be given the new one too.

        Args:
            parameter: [n, ...], a parameter of this optimizer.
            new: [m, ...], the parameter to take its place, of the same dtype and device, and of the same shape but for
                the first dimension. It may be the parameter itself, whose rows of state then move.
            rows: integers [m]: row i of the new state takes that of old row `rows[i]`; -1 begins anew, with zeros, or
                with the new weights where state begins with weights (averages, masters). None: the same rows. What a
                master or a remainder knows beyond a weight of 16 bits stays where the weight is the old row's to the
                bit; elsewhere the new weight counts. State of 8 bits of a parameter with one dimension, where a block
                has several rows, is decoded and rounded to nearest again.

        Raises:
            ValueError: `parameter` is none of this optimizer; `new` is already one, or has another dtype, device or
                shape, or needs no gradient where the old one does; `rows` has another length, dtype or range; one of
                them is sharded or has no shape yet. Names the parameter. Nothing was modified.
            TypeError: `new` is no tensor, or `rows` is neither tensor nor sequence. Nothing was modified.
            RuntimeError: the parameters hold their averages, another thread is in a step, or gradients of the step
                that runs were released already (`release="backward"`). Nothing was modified.
        """
        self._shared.refuse_averages("replace()")
        self._shared.alone("replace()", lambda: self._replace_whole(parameter, new, rows))

    @lasting
    def _replace_whole(self, old: Tensor, new: Tensor, rows: Any) -> None:
        """Replace a parameter; an interrupt comes before or after."""
        shared, before = self._shared, self._current()
        groups, state = shared.param_groups, shared.state
        label = _label_of(old, groups)
        if label is None:
            raise ValueError(
                f"replace(): {_described(old)} is no parameter of this optimizer, which may have replaced it before"
            )
        _check_new(old, new, label)
        other = None if new is old else _label_of(new, groups)
        if other is not None:
            raise ValueError(f"{label}: the new parameter is already in this optimizer, as {other}")
        index = checked_rows(rows, old, new, label)
        if shared.release is not None:
            shared.release.refuse_midway(f"{label}: replace()")
        held, grad = dict(state), new.grad
        moved = moved_entry(held[old], old, new, index) if old in held else {}
        with HeldSignals():
            try:
                _exchange(groups, old, new)
                for param in (old, new):
                    state.pop(param, None)
                if moved:
                    state[new] = moved
                self._build_again()
            except BaseException:
                if shared.engine is before:  # it may also come once all is done
                    _exchange(groups, new, old)
                    state.clear()
                    state.update(held)
                    new.grad = grad
                raise
        if new is not old:
            # another parameter may get its id
            shared.across_rebuilds.placed.discard(id(old))
            shared.accumulated.forget(old)
            if shared.options["grads"] == "flat":
                old.grad = None  # it keeps a whole buffer


def _label_of(param: Any, groups: Groups) -> str | None:
    """The name of a parameter in errors; None where no group has it."""
    for index, group in enumerate(groups):
        for position, held in enumerate(group["params"]):
            if held is param:
                return param_label(index, group, position)
    return None


def _described(value: Any) -> str:
    """What somebody gave as a parameter, in a message."""
    if isinstance(value, Tensor) and not is_uninitialized(value):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _exchange(groups: Groups, old: Tensor, new: Tensor) -> None:
    """Put `new` wherever `old` is, into the very lists that others may hold."""
    for group in groups:
        for position, param in enumerate(group["params"]):
            if param is old:
                if not isinstance(group["params"], list):
                    group["params"] = list(group["params"])
                group["params"][position] = new


def _check_new(old: Tensor, new: Any, label: str) -> None:
    """Raise ValueError or TypeError, naming the old one, for a parameter that cannot take its place."""
    if not isinstance(new, Tensor):
        raise TypeError(f"{label}: expected a tensor in its place, got {type(new).__name__}")
    for param, which in ((old, "it"), (new, "the new parameter")):
        if is_sharded(param) or getattr(param, "_fsdp_flattened", False):
            raise ValueError(
                f"{label}: {which} is sharded over processes, and replace() knows the rows of whole parameters only"
            )
        if is_uninitialized(param):
            raise ValueError(
                f"{label}: {which} has no shape before the first forward of its module"
            )
    for name in ("dtype", "device", "layout"):
        here, there = getattr(old, name), getattr(new, name)
        if here != there:
            raise ValueError(f"{label}: its {name} is {here}, that of the new parameter {there}")
    here, there = tuple(old.shape), tuple(new.shape)
    if len(here) != len(there) or here[1:] != there[1:]:
        raise ValueError(
            f"{label}: its shape is {here}, that of the new parameter {there}; only the first dimension may differ"
        )
    if not (new.is_leaf or new.retains_grad or old.grad_fn):
        raise ValueError(f"{label}: the new parameter is a non-leaf tensor, which gets no gradient")
    if old.requires_grad and not new.requires_grad:
        raise ValueError(
            f"{label}: the new parameter does not require gradients; wrap it in torch.nn.Parameter"
        )


def checked_rows(rows: Any, old: Tensor, new: Tensor, label: str) -> Tensor | None:
    """Return the old rows that new ones take their state from, int64 on the parameter's device; None: the same ones.

    Raises ValueError or TypeError, naming the parameter; see `Replacing.replace`.
    """
    if rows is None:
        if old.shape != new.shape:
            raise ValueError(
                f"{label}: it has {len(old)} rows, the new parameter {len(new)}: which of them take whose state has to "
                "be said by rows"
            )
        return None
    if old.dim() == 0:
        raise ValueError(f"{label}: it has no dimension, so rows must be None")
    index = _as_tensor(rows, label)
    if tuple(index.shape) != (len(new),):
        raise ValueError(
            f"{label}: rows has shape {tuple(index.shape)}, expected ({len(new)},), one for each row of the new one"
        )
    index = index.to(old.device, torch.int64)
    if len(index):
        least, most = (int(bound) for bound in torch.aminmax(index))
        if least < -1 or most >= len(old):
            bad = least if least < -1 else most
            raise ValueError(
                f"{label}: rows holds {bad}, expected a row of the old parameter, which has {len(old)}, or -1 for none"
            )
    return index


def _as_tensor(rows: Any, label: str) -> Tensor:
    """Return what was given as rows as a tensor of integers."""
    if not isinstance(rows, Tensor):
        if not isinstance(rows, (Sequence, np.ndarray)) or isinstance(rows, (str, bytes)):
            raise TypeError(
                f"{label}: rows must be a tensor or a sequence of integers, got {type(rows).__name__}"
            )
        try:
            rows = torch.as_tensor(rows) if len(rows) else torch.zeros(0, dtype=torch.int64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValueError(f"{label}: rows are no integers: {error}") from error
    if rows.dtype not in _INTEGERS or is_sharded(rows):
        hint = "; take mask.nonzero().flatten()" if rows.dtype is torch.bool else ""
        raise ValueError(f"{label}: rows are of dtype {rows.dtype}, expected integers{hint}")
    if is_abstract(rows):
        raise ValueError(f"{label}: rows have no memory")
    return rows.detach()
