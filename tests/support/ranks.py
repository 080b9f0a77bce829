"""Functions of tests that several processes call at once, as ranks of one process group (gloo).

    def check(settings):  # at the top of the test module; called on every rank
        assert torch.distributed.get_world_size() == 2

    def test_it(ranks):
        ranks(2, check, {"lr": 0.1})

The processes stay alive between tests. A rank that fails ends the test with its traceback; ranks that do not come to an
end are named with their stacks, and all are ended.
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import SUPPORT
from patience import patience

MOST = 4  # ranks
ALONE = 5.0  # seconds that a call takes on an idle machine, at most
GRACE = 3.0  # seconds that the others get after the first one failed: it may be waited for

# one process of pytest has the ranks; not in a quick run, which they would make a third longer
of_ranks = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ranks"),
    pytest.mark.skipif(
        not torch.distributed.is_available()
        or not torch.distributed.is_gloo_available()
        or not hasattr(os, "fork"),
        reason="ranks are forked, and speak gloo",
    ),
]


def _environment() -> dict[str, str]:
    """One thread each, and no interface but the loopback, whose address every machine has."""
    chosen = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    loopbacks = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopbacks:
        chosen["GLOO_SOCKET_IFNAME"] = loopbacks[0]
    return {**os.environ, **chosen}


class Ranks:
    """The processes; started when a test first needs them, and again after a failure."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []
        self._pids: list[int] = []
        self._folder = Path()
        self._runs = 0

    def __call__(
        self, world: int, function: Callable[..., Any], *args: Any, limit: float | None = None
    ) -> list[Any]:
        """Call a function on `world` ranks, in a process group of their own; returns what each returned.

        Args:
            function: at the top of its module.
            args: pickled; the same for all ranks.
            limit: seconds; None for what `patience` says.

        Raises:
            AssertionError: a rank failed, or did not come to an end.
        """
        if self._server is None:
            self._start()
        self._runs += 1
        job = {
            "path": function.__code__.co_filename,
            "name": function.__qualname__,
            "args": args,
            "world": world,
            "store": str(self._folder / f"store-{self._runs}"),
        }
        for connection in self._connections[:world]:
            connection.send_bytes(pickle.dumps(job))
        return self._answers(world, limit or patience(ALONE) or math.inf)

    def _start(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        pairs = [socket.socketpair() for _ in range(MOST)]
        theirs = [pair[1].fileno() for pair in pairs]
        self._server = subprocess.Popen(
            [sys.executable, str(SUPPORT / "rank_server.py"), str(self._folder), *map(str, theirs)],
            env=_environment(),
            pass_fds=theirs,
            start_new_session=True,  # so that all of them can be ended at once
        )
        for _, other in pairs:
            other.close()
        self._connections = [Connection(own.detach()) for own, _ in pairs]
        self._pids = [pickle.loads(connection.recv_bytes()) for connection in self._connections]

    def _answers(self, world: int, limit: float) -> list[Any]:
        end = time.monotonic() + limit
        waiting = dict(enumerate(self._connections[:world]))
        results: dict[int, Any] = {}
        failed: dict[int, str] = {}
        while waiting and (left := end - time.monotonic()) > 0:
            ready = wait(list(waiting.values()), min(left, 3600.0))
            for rank in [rank for rank, connection in waiting.items() if connection in ready]:
                try:
                    is_result, answer = pickle.loads(waiting.pop(rank).recv_bytes())
                except (EOFError, ConnectionError):
                    is_result, answer = False, "the process died"
                (results if is_result else failed)[rank] = answer
                if not is_result:
                    end = min(end, time.monotonic() + GRACE)
        if not (waiting or failed):
            return [results[rank] for rank in range(world)]
        said = [f"rank {rank} failed:\n{text}" for rank, text in sorted(failed.items())]
        said += [f"rank {rank} is stuck:\n{self._stack(rank)}" for rank in sorted(waiting)]
        self.close()
        raise AssertionError("\n".join(said))

    def _stack(self, rank: int) -> str:
        os.kill(self._pids[rank], signal.SIGUSR1)
        file = self._folder / f"stack-{rank}"
        end = time.monotonic() + GRACE
        while time.monotonic() < end and not file.read_text().endswith("\n"):
            time.sleep(0.02)
        time.sleep(0.02)  # it is written in parts
        return file.read_text()

    def close(self) -> None:
        """End all of them."""
        if self._server is None:
            return
        for connection in self._connections:
            connection.close()
        with suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        self._server = None
        shutil.rmtree(self._folder, ignore_errors=True)
