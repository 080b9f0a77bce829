"""A time limit for compilations."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class CompileTimeout(BaseException):
    """Raised when the limit is over. Not an Exception, so that no compiler swallows it."""


@contextmanager
def compile_timeout(seconds: float) -> Iterator[None]:
    """Interrupt the body after `seconds`; outside the main thread, which gets no signals, it runs to its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise CompileTimeout

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
