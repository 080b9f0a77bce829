"""Whose turn it is: a group with `update_every=n` moves on every n-th step that it is part of (csrc/turn.h).

What a parameter remembers of the steps since its group last moved is one number, `waited`: twice their count, and one
more if any of them left a gradient in `grad_sum`. It lies in float32 tensors, as step counts do.
"""

from __future__ import annotations

from typing import Any

Array = Any  # of NumPy, or a tensor


def waits(waited: Array, update_every: Array) -> Array:
    """Whether the coming step is not the group's turn: bool, elementwise."""
    return waited // 2 + 1 < update_every


def has_sum(waited: Array) -> Array:
    """Whether there is a sum of earlier gradients: bool, elementwise."""
    return waited % 2 != 0


def waited_after(waited: Array, update_every: Array, adds: Array) -> Array:
    """`waited` after the coming step; `adds`: where it adds a gradient to the sum, if it waits."""
    longer = waited // 2 * 2 + 2 + (has_sum(waited) | adds)
    return waits(waited, update_every) * longer
