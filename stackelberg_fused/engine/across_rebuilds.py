"""What an optimizer's engine leaves to the next one, which is built when groups or state were edited."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..groups.rate_warnings import RatioWatch
from .flat_gradients import FlatGradients


@dataclass
class AcrossRebuilds:
    """Changed by every engine in place.

    Attributes:
        placed: ids of parameters that were moved into arenas, or have to stay where they are.
        reported: devices and dtypes of which it was said that the reference steps them.
        turns: `update_every` and `update_every_grads` by id of a group, of those that state counts are of.
        flat: buffers of gradients, by what their tables have in common with those of the engine.
        watch: what was said of rates.
    """

    placed: set[int] = field(default_factory=set)
    reported: set[Any] = field(default_factory=set)
    turns: dict[int, tuple[int, str]] = field(default_factory=dict)
    flat: dict[Any, FlatGradients] = field(default_factory=dict)
    watch: RatioWatch = field(default_factory=RatioWatch)
