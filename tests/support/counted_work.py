"""How much work a call is, counted instead of timed: Python lines run, and functions of C called."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any


def work(call: Callable[[], Any]) -> int:
    """Lines that a call runs and functions of C that it calls; the same number every time."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "c_call"

    before = sys.gettrace(), sys.getprofile()
    gc.disable()  # finalizers of other tests' objects are no work of the call
    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
        gc.enable()
    return count


def growth(call_for: Callable[[int], Callable[[], Any]], small: int, factor: int) -> float:
    """How much more work a call is for `factor` times `small` than for `small`; the first call warms caches up."""
    work(call_for(2))
    return work(call_for(small * factor)) / work(call_for(small))
