"""Calls without an interrupt between them, and signal handlers that wait."""

from __future__ import annotations

import _thread
import signal
import threading
from functools import partial
from types import FrameType
from typing import Any

import pytest
from interrupted import SIGNAL, Interrupt, Interrupting, arrive, raising_handler

from stackelberg_fused.backends.interrupts import HeldSignals, make_calls


def test_calls_are_made_in_order() -> None:
    made: list[int] = []
    make_calls([partial(made.append, i) for i in range(3)])
    assert made == [0, 1, 2]


def test_an_interrupt_comes_after_the_last_call() -> None:
    made: list[int] = []
    calls = [partial(made.append, 0), partial(_thread.interrupt_main, SIGNAL)]
    with raising_handler(), pytest.raises(Interrupt):
        make_calls([*calls, partial(made.append, 1)])
    assert made == [0, 1]


def test_an_error_comes_before_the_next_call() -> None:
    made: list[int] = []
    with pytest.raises(ValueError, match="invalid literal"):
        make_calls([partial(made.append, 0), partial(int, "x"), partial(made.append, 1)])
    assert made == [0]


def _held(*calls: partial[Any]) -> None:
    with HeldSignals():
        for call in calls:
            call()


def test_a_handler_is_called_when_the_context_is_left() -> None:
    seen: list[str] = []
    with raising_handler():
        with pytest.raises(Interrupt):
            _held(partial(arrive), partial(arrive), partial(seen.append, "inside"))
        with pytest.raises(Interrupt):  # at once, as before
            arrive()
    assert seen == ["inside"]


def test_every_handler_is_called_once_and_gets_its_frame() -> None:
    seen: list[tuple[int, bool]] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append((number, frame is not None))
        raise Interrupt

    numbers = signal.SIGUSR1, signal.SIGUSR2
    previous = [signal.signal(number, note) for number in numbers]
    try:
        with pytest.raises(Interrupt):
            _held(*(partial(_thread.interrupt_main, number) for number in (*numbers, *numbers)))
        assert sorted(seen) == sorted((int(number), True) for number in numbers)
        assert [signal.getsignal(number) for number in numbers] == [note, note]
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)


def test_an_error_inside_is_not_lost() -> None:
    with raising_handler(), pytest.raises(Interrupt) as raised:
        _held(partial(arrive), partial(int, "x"))
    assert isinstance(raised.value.__context__, ValueError)


def test_handlers_are_set_again_wherever_a_signal_arrives() -> None:
    def held() -> None:
        with HeldSignals():
            done.append(None)

    number, came = 1, True
    before = {n: signal.getsignal(n) for n in signal.valid_signals()}
    while came:
        done: list[None] = []
        interrupting = Interrupting(number)
        interrupted = interrupting(held)
        assert {n: signal.getsignal(n) for n in signal.valid_signals()} == before
        assert interrupted == interrupting.came
        number, came = number + 1, interrupting.came
    assert done


def test_other_threads_are_left_alone() -> None:
    found = []

    def look() -> None:
        with HeldSignals():
            found.append(signal.getsignal(SIGNAL))

    with raising_handler():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert found == [signal.getsignal(SIGNAL)]
