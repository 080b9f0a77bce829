"""Says what is running, where no test has ended for a while: a slow machine does not look like one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class StillRunning:
    """A plugin of the process that reports.

    Args:
        say: writes one line.
        after: seconds of silence.
    """

    def __init__(self, say: Callable[[str], None], after: float = 30.0) -> None:
        self._say, self._after = say, after
        self._began: dict[str, float] = {}
        self._heard = time.monotonic()
        self._over = threading.Event()

    def pytest_sessionstart(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def pytest_sessionfinish(self) -> None:
        self._over.set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._began.pop(nodeid, None)
        self._heard = time.monotonic()

    def look(self) -> None:
        """Say what is running, if nothing was heard for so long."""
        now = time.monotonic()
        if now - self._heard < self._after:
            return
        self._heard = now
        running = [f"{name} ({now - began:.0f} s)" for name, began in [*self._began.items()]]
        self._say(f"still running: {', '.join(running) or 'collection'}")

    def _watch(self) -> None:
        while not self._over.wait(self._after / 10):
            self.look()
