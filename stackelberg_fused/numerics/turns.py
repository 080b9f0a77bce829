"""Turns: a group with `update_every=n` moves on every n-th step that it takes part in (csrc/turn.h).

Each parameter has one number, `waited`: twice the count of steps since its group last moved, plus one if any of them
added a gradient to `grad_sum`. Like step counts it is stored in float32 tensors.
"""

from __future__ import annotations

from typing import Any

Array = Any  # a NumPy array or a tensor


def waits(waited: Array, update_every: Array) -> Array:
    """Tell for each parameter whether its group waits in the coming step: bool, elementwise."""
    return waited // 2 + 1 < update_every


def has_sum(waited: Array) -> Array:
    """Tell for each parameter whether `grad_sum` has a sum of earlier gradients: bool, elementwise."""
    return waited % 2 != 0


def waited_after(waited: Array, update_every: Array, adds: Array) -> Array:
    """Return `waited` after the coming step, elementwise.

    Args:
        waited: before the step.
        update_every: of the parameter's group.
        adds: bool: the step adds a gradient to `grad_sum` if the group waits.
    """
    after_waiting = waited // 2 * 2 + 2 + (has_sum(waited) | adds)
    return waits(waited, update_every) * after_waiting
