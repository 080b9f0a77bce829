"""Step counts in tensors of the user's, who put them into the optimizer's state: they stay there and are advanced."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..layout.table import Table

_CPU = torch.device("cpu")


class OwnCounts:
    """The step counts that are not the user's: those of all tables so far, also ones that left the state meanwhile.

    Args:
        tables: of the last engine.
        arrays: the counts of all tables so far, as far as anybody holds a tensor that shows one.
    """

    def __init__(self, tables: Sequence[Table], arrays: Iterable[weakref.ref[np.ndarray]]) -> None:
        self._ids = {
            id(tensors["step"])
            for table in tables
            for i, tensors in enumerate(table.state_tensors)
            if "step" in tensors and i not in table.given_counts
        }
        alive = [array for array in (ref() for ref in arrays) if array is not None]
        self._places = [(a.ctypes.data, a.ctypes.data + a.nbytes) for a in alive]

    def __contains__(self, count: Tensor) -> bool:
        if id(count) in self._ids:
            return True
        return count.device == _CPU and any(a <= count.data_ptr() < b for a, b in self._places)


def is_given(count: object, own: OwnCounts | None) -> bool:
    """Tell whether a step count is a tensor of the user's, and not one of ours or a copy of it.

    Args:
        count: what the state holds.
        own: ours; None for an optimizer that was just unpickled or copied. Then only shared memory is the
            user's: another process counts in it.
    """
    if not isinstance(count, Tensor):
        return False
    if own is None:
        return count.device == _CPU and count.is_shared()
    return count not in own


def check_given(count: Tensor, name: str) -> None:
    """Raise ValueError, naming the parameter, for a count of the user's to which no step can be added."""
    reason = "it is no real number"
    if not (count.dtype is torch.bool or count.dtype.is_complex):
        is_fixed = count.is_inference() and not torch.is_inference_mode_enabled()
        reason = "it was made in inference mode" if is_fixed else ""
        try:
            count.detach().clone().add_(1)  # on its device: nothing is waited for
        except RuntimeError as error:  # NotImplementedError too
            reason = str(error).split("\n")[0]
    if reason:
        raise ValueError(
            f"{name}: the step count {count!r} in its state cannot be advanced by a step: {reason}"
        )


def read_given(table: Table) -> None:
    """Take over what others, as asynchronous trainers in other processes, counted since the last step.

    A device is not asked: it would have to be waited for.
    """
    for i, count in table.given_counts.items():
        if count.device == _CPU:
            table.step_counts[i] = count.item()


def advances_of_given(table: Table, moves: np.ndarray) -> list[partial[Tensor]]:
    """The calls that add a step to the counts of the slots that move (bool [n]).

    Not the sum that our own count is now: meanwhile somebody else may have counted too.
    """
    # of detached ones: where a count requires gradients, autograd would refuse
    return [partial(count.detach().add_, 1) for i, count in table.given_counts.items() if moves[i]]
