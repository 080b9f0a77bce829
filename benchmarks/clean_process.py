"""A measuring process that imports ``stackelberg_fused`` only if it is asked to time it.

Run as a script, this file loads its folder as the package ``standalone_benchmarks``: under its installed name, the
import would load the library on the way. Its argument is the module of the package that answers requests.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = "standalone_benchmarks"


class CleanProcessFailed(RuntimeError):
    """The process ended or answered too late; the message is the last line that it wrote."""


class CleanProcess:
    """A process that answers requests, one JSON line each.

    The docstring of the module's `answer` lists the requests. After a failure, the next request starts another
    process.

    Args:
        module: answers the requests by its function `answer`.
        timeout: seconds to wait for an answer.
        python: the interpreter; None means the current one.
        environment: variables of the process; None means the current ones.
    """

    def __init__(
        self,
        module: str = "worker",
        timeout: float = 120.0,
        python: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        script = str(Path(__file__).resolve())
        self._command = [python or sys.executable, script, module]
        self._timeout = timeout
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: dict[str, Any], patience: float = 0.0) -> dict[str, Any]:
        """Send one request and wait for its answer, at most the timeout and `patience` seconds more.

        Raises:
            CleanProcessFailed: there is no answer.
        """
        process = self._process = self._process or subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        kill_later = threading.Timer(self._timeout + patience, process.kill)
        kill_later.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            kill_later.cancel()
        if line:
            return json.loads(line)
        process.wait()
        errors = process.stderr.read().strip().splitlines()
        self.close()
        raise CleanProcessFailed(errors[-1] if errors else f"no answer in {self._timeout:.0f} s")

    def close(self) -> None:
        """End the process and wait for it."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            # closes its input, which ends it
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def __enter__(self) -> CleanProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _load_folder() -> None:
    folder = Path(__file__).resolve().parent
    # Python puts the script's folder on the path, where its modules would shadow others of the same name
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != folder]
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    spec.loader.exec_module(package)


def _main() -> int:
    _load_folder()
    answer = importlib.import_module(f"{PACKAGE}.{sys.argv[1]}").answer
    answers = sys.stdout
    # prints of a library must not be taken for an answer
    sys.stdout = sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
