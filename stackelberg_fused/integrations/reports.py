"""What the callbacks of all trainers have in common: optimizers inside of wrappers, and numbers for a logger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ..optimizers.base import StackelbergOptimizer

PREFIX = "optimizer"  # of the names in logs


def ours(optimizers: Iterable[Any]) -> list[StackelbergOptimizer]:
    """This library's optimizers among these, without the wrappers of trainers around them."""
    found = []
    for optimizer in optimizers:
        inner = optimizer
        while inner is not None and not isinstance(inner, StackelbergOptimizer):
            inner = getattr(inner, "optimizer", None)
        if inner is not None:
            found.append(inner)
    return found


def averaging(optimizers: Iterable[Any]) -> list[StackelbergOptimizer]:
    """Those of them that keep averages of the weights."""
    return [
        optimizer
        for optimizer in ours(optimizers)
        if any(group.get("ema_decay") is not None for group in optimizer.param_groups)
    ]


NO_AVERAGES = (
    "no optimizer of this library with an ema_decay was found: pass ema_decay=0.999 to it, or leave this "
    "callback out"
)


@contextmanager
def averages_of(optimizers: Iterable[Any]) -> Iterator[None]:
    """Within this context all models hold their averages; those that hold them already go on to."""
    with ExitStack() as stack:
        for optimizer in averaging(optimizers):
            if not optimizer._shared.is_swapped:
                stack.enter_context(optimizer.ema_weights())
        yield


def checked_every(every: int) -> int:
    """Return an interval in steps, or raise ValueError."""
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every must be a number of steps >= 1, got {every!r}")
    return every


def report(
    optimizers: Sequence[StackelbergOptimizer], gap: Callable[[], float] | None = None
) -> dict[str, float]:
    """Read what loggers are to be told: `last_step`, rates by group and the follower gap. It waits for the device.

    Args:
        optimizers: this library's. Where there are several, their numbers get their place among them in front.
        gap: returns the follower gap.

    Returns:
        Floats by "optimizer/grad_norm/head", "optimizer/skipped" (0 or 1), "optimizer/lr/body", ...; what there is.
    """
    found: dict[str, float] = {}
    for index, optimizer in enumerate(optimizers):
        prefix = PREFIX if len(optimizers) == 1 else f"{PREFIX}{index}"
        numbers = {**optimizer.last_step.as_dict(), **_rates(optimizer.param_groups)}
        found.update({f"{prefix}/{key}": float(n) for key, n in numbers.items() if n is not None})
    if gap is not None:
        found[f"{PREFIX}/follower_gap"] = float(gap())
    return found


def _rates(groups: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The rates by the names of groups; a group without one is its role, and its place where several have that."""
    names = [group.get("name") or group["role"] for group in groups]
    return {
        f"lr/{name}" if names.count(name) == 1 else f"lr/{name}.{index}": float(group["lr"])
        for index, (name, group) in enumerate(zip(names, groups, strict=True))
    }
