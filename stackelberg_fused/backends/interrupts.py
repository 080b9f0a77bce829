"""What an interrupt must not separate: the launch of a step, and all that has to follow it.

Python handles a signal (Ctrl-C), and raises what another thread asked it to, between two bytecodes. So calls that run
no bytecode are made in one go; where a step is Python code, handlers wait until it is over.
"""

from __future__ import annotations

# the functions below `signal`, without the enums: a tenth of the time
import _signal
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from types import FrameType, TracebackType
from typing import Any

_NUMBERS = tuple(map(int, _signal.valid_signals()))


_call = partial.__call__


def make_calls(calls: Sequence[partial[Any]]) -> None:
    """Make calls one after the other, with no bytecode between them; an exception ends them, as it would in Python.

    Args:
        calls: partial objects of built-in functions and methods.
    """
    deque(map(_call, calls), 0)


class HeldSignals:
    """Context manager: Python's handlers of signals that arrive within it are called when it is left.

    Only the main thread ever calls handlers; in any other one this does nothing.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._arrived: dict[int, FrameType | None] = {}

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        found = {number: _signal.getsignal(number) for number in _NUMBERS}
        # others are numbers (default, ignored), or None where they are not Python's
        self._handlers = {number: found[number] for number in found if callable(found[number])}
        try:
            for number in self._handlers:
                _signal.signal(number, self._hold)
        except BaseException:  # of a handler that is not held yet
            self._let_go()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._let_go()

    def _let_go(self) -> None:
        try:
            self._restore()
        finally:
            self._handle()

    def _hold(self, number: int, frame: FrameType | None) -> None:
        self._arrived.setdefault(number, frame)

    def _restore(self) -> None:
        """Set the handlers as they were; a signal that arrives meanwhile may raise, but not before all are set."""
        interrupt: BaseException | None = None
        while True:
            try:
                deque(map(_signal.signal, self._handlers, self._handlers.values()), 0)
                break
            except BaseException as error:  # of a handler that is set again
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _handle(self) -> None:
        """Call the handlers of the signals that arrived, all of them even if one raises."""
        while self._arrived:
            number = next(iter(self._arrived))
            frame = self._arrived.pop(number)
            try:
                self._handlers[number](number, frame)
            finally:
                self._handle()
