"""What make would do, asked without doing it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
from paths import ROOT
from patience import patience

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="no make on PATH")
PAIR = ".venv-torch2.15.0-triton3.9.0"


def dry(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-n", *arguments, "VENV=none/.venv"]
    # these tests may run under make, which hands its own variables on
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "TEST_ARGS"))}
    how = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": patience(1)}
    return subprocess.run(command, env=env, **how)


def lines(*arguments: str) -> list[str]:
    done = dry(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_targets_take_the_plain_environment() -> None:
    for target in ("build", "demo", "test", "test-quick", "lint", "docs", "bench"):
        assert not any("torch==" in line for line in lines(target))
        assert any("-r requirements/run.txt" in line for line in lines(target))
    assert any(line.endswith("bin/mypy") for line in lines("lint"))
    assert lines("docs")[-1].endswith("bin/python docs/site/build.py")
    assert " --quick" in lines("test-quick")[-1]
    assert lines("fuzz", "MINUTES=7", "FUZZ_ARGS=--machine native")[-1].endswith(
        "bin/python -m fuzz --minutes 7 --machine native"
    )


def test_what_asks_for_torchvision_comes_alone() -> None:
    """torchvision brings a torch of its own; what these need else is there before them."""
    for pair in ([], ["TORCH=2.15.0", "TRITON=3.9.0"]):
        found = lines("test", *pair)
        (last,) = (line for line in found if line.endswith("-r requirements/no-deps.txt"))
        assert " --no-deps " in last
        others = [line for line in found if " -r requirements/" in line and line != last]
        assert not any(" --no-deps " in line for line in others)
        assert any(line.endswith("-r requirements/integrations.txt") for line in others)


def test_nothing_may_bring_another_torch() -> None:
    installs = [line for line in lines("test") if " -r requirements/" in line]
    assert len(installs) == 7
    assert all(" --constraint requirements/run.txt " in line for line in installs)


def test_ci_builds_the_docs_and_one_wheel() -> None:
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make docs" in commands
    assert "make wheel" in commands
    assert "make wheels" not in commands  # of five interpreters, beside torches of gigabytes


def test_wheels_are_built_for_the_interpreters_that_are_named() -> None:
    found = lines("wheels", "PYTHONS=3.12 /opt/python", "BESIDE=2.15.0", "PIP_ARGS=--index-url x")
    assert any(line.endswith(" -r requirements/wheels.txt") for line in found)
    assert found[-1].endswith(
        "bin/python release/wheels.py --pythons 3.12 /opt/python --beside 2.15.0"
        ' --pip-args="--index-url x"'
    )
    assert " --pythons 3.10 3.11 3.12 3.13 3.14 --beside 2.13.0 2.15.0 " in lines("wheels")[-1]
    # of one interpreter, that of the environment, with what `make build` compiled
    one = lines("wheel")
    assert one[-1].endswith('bin/python release/wheels.py --pip-args=""')
    assert any(line.endswith(" -e .") for line in one)


def test_soak_takes_its_arguments() -> None:
    found = lines("soak", "SOAK_ARGS=--only kills")[-1]
    assert found.endswith("bin/python tests/soak/soak.py --only kills")


def test_another_pair_of_versions_gets_an_environment_of_its_own() -> None:
    found = lines(
        "test", "TORCH=2.15.0", "TRITON=3.9.0", "PIP_ARGS=--index-url https://example.org"
    )
    env = f"none/{PAIR}"
    installs = [line for line in found if f"{env}/bin/python -m pip" in line]
    assert all("--index-url https://example.org" in line for line in installs)
    assert installs[0].endswith(" torch==2.15.0")
    assert installs[1].endswith(" --no-deps triton==3.9.0")
    assert all(f"--constraint {env}/versions.txt" in line for line in installs[2:])
    # nothing is built in it, and what the plain environment is for is made with what is pinned
    assert not any(" -e ." in line for line in installs)
    plain = [line for line in found if "none/.venv/bin/python -m pip" in line]
    assert any(" -e ." in line for line in plain)
    assert not any("torch==" in line for line in plain)
    assert f"none/.venv/bin/python -m venv {env}" in found
    assert found[-1].startswith(f"{env}/bin/pytest ")


def test_other_tritons_come_beside_the_torch_that_is_here() -> None:
    found = lines("ptx-tritons", "TRITONS=3.6.0 3.9.0", "TEST_ARGS=-x")
    for triton in ("3.6.0", "3.9.0"):
        (install,) = (line for line in found if line.endswith(f" triton=={triton}"))
        assert " --no-deps " in install
        assert f" --target none/.venv/triton-{triton} " in install
    assert not any("torch==" in line for line in found)
    loop = " ".join(found[-3:])
    assert "for triton in 3.6.0 3.9.0;" in loop
    assert "PYTHONPATH=none/.venv/triton-$triton" in loop
    assert " --ptx tests/ptx " in loop
    assert " -k triton -x;" in loop


@pytest.mark.parametrize("shift", ["", ".1"])
def test_a_torch_that_was_replaced_is_an_error(shift: str) -> None:
    wanted = [version(name).partition("+")[0] for name in ("torch", "numpy")]
    found = "\n".join(lines("test", f"TORCH={wanted[0]}{shift}", f"TRITON={wanted[1]}"))
    check = re.search(
        r'^\S+ (-c "import sys; .*?") (torch==\S+) triton(==\S+)$', found, re.M | re.S
    )
    code = check[1].removeprefix('-c "').removesuffix('"').replace("\\\n", "")
    command = [sys.executable, "-c", code, check[2], f"numpy{check[3]}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(1))
    assert (done.returncode != 0) == bool(shift), done.stderr
    if shift:
        assert f"torch=={wanted[0]}.1 was wanted, {version('torch')} is installed" in done.stderr


def test_one_version_alone_is_refused() -> None:
    for argument in ("TORCH=2.15.0", "TRITON=3.9.0"):
        assert "name both" in dry("test", argument).stderr


def test_ci_takes_the_pinned_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "TORCH" not in (ROOT / ".ci" / "run").read_text()
    monkeypatch.setenv("TORCH", "2.15.0")  # what the environment says is not asked
    assert not any("2.15.0" in line for line in lines("test"))
