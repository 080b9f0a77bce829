"""Installs a wheel into an empty environment beside a torch; runs `stackelberg doctor` and `verify` there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from interpreters import Interpreter

# what was installed is what is imported, and every native module that was built can be loaded without a driver
IMPORTS = """
import importlib, json, sys, torch, stackelberg_fused
from pathlib import Path
folder = Path(stackelberg_fused.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
modules = json.loads((folder / "_build_info.json").read_text())["modules"]
built = [name for name, module in modules.items() if module["built"]]
for name in built:
    importlib.import_module(f"stackelberg_fused.{name}")
print(f"{folder} beside torch {torch.__version__}, with {', '.join(built)}")
"""


class Failed(Exception):
    """A wheel did not pass; the text says where."""


class NoSuchTorch(Exception):
    """There is no torch of that version for this interpreter."""


def pinned(requirements: Path, name: str) -> str:
    """Return the version that a file of requirements asks for."""
    lines = requirements.read_text().splitlines()
    return next(
        line.partition("==")[2].split(";")[0] for line in lines if line.startswith(f"{name}==")
    )


def try_wheel(
    wheel: Path,
    interpreter: Interpreter,
    torch: str,
    requirements: Path,
    folder: Path,
    pip_args: list[str],
) -> None:
    """Install a wheel into an environment made for this, and verify it there.

    Args:
        wheel: the file.
        interpreter: that the wheel is for.
        torch: its version. What `requirements` pins comes with the torch that it pins; beside any other torch pip
            chooses as it does for a user.
        requirements: requirements/run.txt.
        folder: where to make the environment; it is removed in the end, since it may have gigabytes.
        pip_args: more arguments of pip.

    Raises:
        NoSuchTorch: pip finds no such torch for this interpreter.
        Failed: pip, the imports or `stackelberg verify` failed; their output was printed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    env, elsewhere = folder / "env", folder / "elsewhere"
    elsewhere.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("STACKELBERG_", "PYTHON"))}

    def run(what: str, *command: str | Path) -> None:
        if subprocess.run(list(map(str, command)), cwd=elsewhere, env=clean).returncode:
            raise Failed(f"{what} failed beside torch {torch}")

    try:
        run("venv", interpreter.path, "-m", "venv", env)
        python = env / "bin" / "python"
        install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        install += ["--no-input", *pip_args]
        if torch == pinned(requirements, "torch"):
            install += ["--constraint", requirements]
        install = list(map(str, [*install, f"torch=={torch}", wheel]))
        done = subprocess.run(install, cwd=elsewhere, env=clean, stderr=subprocess.PIPE, text=True)
        print(done.stderr, end="", flush=True)
        if f"No matching distribution found for torch=={torch}" in done.stderr:
            raise NoSuchTorch(f"pip finds no torch {torch} for CPython {interpreter.minor}")
        if done.returncode:
            raise Failed(f"pip failed beside torch {torch}")
        run("the import", python, "-c", IMPORTS)
        for command in ("doctor", "verify"):
            run(f"stackelberg {command}", env / "bin" / "stackelberg", command)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
