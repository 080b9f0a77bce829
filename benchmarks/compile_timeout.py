"""Nobody compiles for ever."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeBoxExpired(BaseException):
    """Raised inside a time box. Not an Exception, so that no compiler swallows it."""


@contextmanager
def time_box(seconds: float) -> Iterator[None]:
    """Interrupt the body after `seconds`; without a main thread (no signals) it runs to its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise TimeBoxExpired

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
