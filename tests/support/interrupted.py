"""Interrupts that arrive at a chosen instruction of the library, and what they must leave behind: all or nothing."""

from __future__ import annotations

import _thread
import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch

import stackelberg_fused as sf

SIGNAL = signal.SIGUSR1
LIBRARY = sf.__file__.removesuffix("__init__.py")


class Interrupt(BaseException):
    """What the handler raises, as Python's own raises KeyboardInterrupt."""


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interrupt


@contextmanager
def raising_handler() -> Iterator[None]:
    previous = signal.signal(SIGNAL, _raise)
    try:
        yield
    finally:
        signal.signal(SIGNAL, previous)


# built-in functions, which run no instruction after which a handler would be called
ARRIVALS: dict[str, Callable[[], Any]] = {
    "signal": partial(_thread.interrupt_main, SIGNAL),
    "asynchronous exception": partial(
        ctypes.pythonapi.PyThreadState_SetAsyncExc,
        ctypes.c_ulong(threading.main_thread().ident or 0),
        ctypes.py_object(Interrupt),
    ),
}


def arrive() -> None:
    """Have the signal arrive; its handler is called when Python next looks for signals."""
    ARRIVALS["signal"]()


class Interrupting:
    """Makes calls in which an interrupt arrives before the `number`-th instruction that the library executes.

    Args:
        arrival: of `ARRIVALS`.

    Attributes:
        came: whether the call got that far.
    """

    def __init__(self, number: int, arrival: str = "signal") -> None:
        self._left, self._arrive = number, ARRIVALS[arrival]
        self.came = False

    def __call__(self, function: Callable[[], Any]) -> bool:
        """Tell whether the interrupt left the function."""
        previous, has_grad = sys.gettrace(), torch.is_grad_enabled()
        try:
            with raising_handler():
                sys.settrace(self._trace)
                try:
                    function()
                finally:
                    sys.settrace(previous)
        except Interrupt:
            # between `with no_grad()` and what follows it Python itself looks for no signals
            torch.set_grad_enabled(has_grad)
            return True
        return False

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._left -= 1
            if self._left == 0:
                self.came = True
                self._arrive()
        return self._trace
