"""Builds the release: a source distribution, and from it a wheel for each interpreter, in dist/.

`make wheels` runs this for every supported version of CPython, `make wheel` for that of the environment. Kernels are
compiled once, into build/native, where `make build` compiles too.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from contents import build_info, sdist_faults, wheel_faults
from interpreters import Interpreter, Unusable, find
from trial import Failed, NoSuchTorch, pinned, try_wheel

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
WORK = ROOT / "build" / "wheels"  # all that is made on the way
RUN, BUILD = ROOT / "requirements" / "run.txt", ROOT / "requirements" / "build.txt"
BIN = Path(sys.executable).parent


@dataclass
class Outcome:
    """What came of one interpreter.

    Attributes:
        wheel: the file, in dist/ once it has passed.
        passed: the versions of torch that `stackelberg verify` passed beside.
        missing: what could not be tried, and why.
        seconds: how long it took.
    """

    wheel: Path
    passed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def line(self) -> str:
        info = build_info(self.wheel)
        modules = [name for name, module in info["modules"].items() if module["built"]]
        native = ", ".join(
            f"{name} ({' '.join(info['archs'])})" if name == "_cuda" else name for name in modules
        )
        beside = f"passed beside torch {' and '.join(self.passed)}" if self.passed else "not tried"
        size = self.wheel.stat().st_size / 1e6
        text = f"{self.wheel.name}\n  {size:.1f} MB, {native}; {beside}; {self.seconds:.0f} s"
        return "\n  ".join([text, *self.missing])


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Run a program and show what it prints; `Failed` where its exit status is not 0."""
    words = list(map(str, command))
    print(f"\n$ {shlex.join(words)}", flush=True)
    if subprocess.run(words, cwd=cwd).returncode:
        raise Failed(f"{Path(words[0]).name} failed: see above")


def run_build(python: Path, *arguments: str | Path, cwd: Path, env: dict[str, str]) -> None:
    """Run the program `build`; show its output, a line for each file, only where it fails.

    Its own option --quiet would show nothing there either, so not why a module cannot be compiled.
    """
    command = [str(python), "-m", "build", "--no-isolation", *map(str, arguments)]
    print(f"\n$ {shlex.join(command)}", flush=True)
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=cwd, env=env, **both)
    if done.returncode:
        print(done.stdout)
        raise Failed("build failed: see above")
    print(done.stdout.rstrip().rpartition("\n")[2], flush=True)


def fail_on(faults: list[str], where: Path) -> None:
    if faults:
        raise Failed("\n  ".join([f"{where.name}:", *faults]))


def make_sdist() -> Path:
    """Make the source distribution in dist/, in place of what an earlier release left there."""
    DIST.mkdir(exist_ok=True)
    for old in DIST.glob("stackelberg_fused-*"):
        old.unlink()
    run_build(Path(sys.executable), "--sdist", "--outdir", DIST, cwd=ROOT, env=dict(os.environ))
    (archive,) = DIST.glob("*.tar.gz")
    fail_on(sdist_faults(archive, ROOT), archive)
    return archive


def unpack(archive: Path) -> Path:
    """Unpack the source distribution; what it compiles goes to the build/native of the checkout.

    Paths in it are relative and its files keep their times, so that ninja takes each object that is up to date.
    """
    folder = WORK / "source"
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    native = ROOT / "build" / "native"
    native.mkdir(parents=True, exist_ok=True)
    (source / "build").mkdir()
    (source / "build" / "native").symlink_to(native, target_is_directory=True)
    return source


def building_python(interpreter: Interpreter, pip_args: list[str]) -> Path:
    """Return an interpreter with requirements/build.txt: this one, or that of an environment, which is kept."""
    if interpreter.version == platform.python_version():
        return Path(sys.executable)
    env = WORK / f"env-{interpreter.tag}"
    python = env / "bin" / "python"
    if not python.exists():
        run(interpreter.path, "-m", "venv", env)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(*pip, *pip_args, "-r", BUILD)
    return python


def asked_for() -> dict[str, str]:
    """The environment in which a native module that cannot be built is an error, unless it is switched off."""
    env = {"STACKELBERG_BUILD_CPU": "1", **os.environ}
    if shutil.which("nvcc") or os.environ.get("CUDA_HOME"):
        env.setdefault("STACKELBERG_BUILD_CUDA", "1")
    return env


def build_wheel(source: Path, interpreter: Interpreter, pip_args: list[str]) -> Path:
    """Build the wheel of one interpreter and have auditwheel tag it.

    auditwheel may not vendor anything: the CUDA runtime is linked statically, and all else is the system's. Without a
    patcher it fails where it would.
    """
    raw = WORK / f"raw-{interpreter.tag}"
    shutil.rmtree(raw, ignore_errors=True)
    python = building_python(interpreter, pip_args)
    run_build(python, "--wheel", "--outdir", raw, source, cwd=source, env=asked_for())
    (built,) = raw.glob("*.whl")
    run(BIN / "auditwheel", "show", built)
    repair = ["repair", "--patcher", "none", "--strip", "--wheel-dir", raw / "repaired", built]
    run(BIN / "auditwheel", *repair)
    (repaired,) = (raw / "repaired").glob("*.whl")
    fail_on(wheel_faults(repaired, ROOT), repaired)
    return repaired


def release_one(
    source: Path, interpreter: Interpreter, beside: list[str], pip_args: list[str]
) -> Outcome:
    """Build, check and try the wheel of one interpreter; it comes into dist/ when it has passed."""
    start = time.monotonic()
    outcome = Outcome(build_wheel(source, interpreter, pip_args))
    run(BIN / "twine", "check", "--strict", outcome.wheel)
    for torch in beside:
        print(f"\n{outcome.wheel.name} in an empty environment beside torch {torch}", flush=True)
        folder = WORK / f"trial-{interpreter.tag}"
        try:
            try_wheel(outcome.wheel, interpreter, torch, RUN, folder, pip_args)
        except NoSuchTorch as reason:
            outcome.missing.append(str(reason))
        else:
            outcome.passed.append(torch)
    if beside and not outcome.passed:
        raise Failed(f"{outcome.wheel.name} passed beside no torch: {'; '.join(outcome.missing)}")
    outcome.wheel = Path(shutil.copy2(outcome.wheel, DIST))
    outcome.seconds = time.monotonic() - start
    return outcome


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--pythons",
        nargs="+",
        default=[sys.executable],
        metavar="PYTHON",
        help="versions such as 3.12, or paths",
    )
    parser.add_argument(
        "--beside",
        nargs="*",
        default=[pinned(RUN, "torch")],
        metavar="TORCH",
        help="versions of torch to try each wheel with",
    )
    parser.add_argument("--pip-args", type=shlex.split, default=[], help="more arguments of pip")
    return parser.parse_args()


def main() -> int:
    """Release for every interpreter that is there; return 1 if anything failed or no wheel was made."""
    args = parsed()
    found, absent = [], []
    for wanted in args.pythons:
        try:
            found.append(find(wanted))
            print(f"CPython {found[-1].version}: {found[-1].path}")
        except Unusable as reason:
            absent.append(f"CPython {wanted}: no wheel; {reason}")
            print(absent[-1])
    outcomes, failures = [], []
    try:
        archive = make_sdist()
        run(BIN / "twine", "check", "--strict", archive)
        source = unpack(archive)
        for interpreter in found:
            try:
                outcomes.append(release_one(source, interpreter, args.beside, args.pip_args))
            except Failed as reason:
                failures.append(f"FAILED: CPython {interpreter.version}: {reason}")
    except Failed as reason:
        failures.append(f"FAILED: {reason}")
    print()
    for line in [*(outcome.line() for outcome in outcomes), *absent, *failures]:
        print(line)
    return 1 if failures or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
