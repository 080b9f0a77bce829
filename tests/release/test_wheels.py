"""What `make wheels` says in the end, and what it returns."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import wheels
from interpreters import Interpreter
from trial import Failed, NoSuchTorch

INFO = (
    '{"modules": {"_cpu": {"built": true}, "_cuda": {"built": true}}, "archs": ["sm_80", "sm_90"]}'
)


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs main with arguments; nothing is built, and `tried` stands in for the trial of a wheel."""
    built = tmp_path / "a-cp312.whl"
    with zipfile.ZipFile(built, "w") as archive:
        archive.writestr("stackelberg_fused/_build_info.json", INFO)
    (tmp_path / "dist").mkdir()
    monkeypatch.setattr(wheels, "DIST", tmp_path / "dist")
    monkeypatch.setattr(wheels, "make_sdist", lambda: tmp_path / "a.tar.gz")
    monkeypatch.setattr(wheels, "unpack", lambda archive: tmp_path)
    monkeypatch.setattr(wheels, "build_wheel", lambda *arguments: built)
    monkeypatch.setattr(wheels, "run", lambda *command: None)

    def main(*arguments: str, tried=lambda torch: None) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(wheels, "try_wheel", lambda wheel, python, torch, *more: tried(torch))
        monkeypatch.setattr(sys, "argv", ["wheels.py", *arguments])
        status = wheels.main()
        in_dist = [path.name for path in (tmp_path / "dist").iterdir()]
        return status, capsys.readouterr().out, in_dist

    return main


def only(there: str):
    def tried(torch: str) -> None:
        if torch != there:
            raise NoSuchTorch(f"pip finds no torch {torch} for CPython 3.12")

    return tried


def test_says_what_passed_and_what_was_not_there(release) -> None:
    arguments = ["--pythons", sys.executable, "2.0", "--beside", "2.13.0", "2.15.0"]
    status, printed, in_dist = release(*arguments, tried=only("2.13.0"))
    assert (status, in_dist) == (0, ["a-cp312.whl"])
    last = printed.splitlines()[-4:]
    assert last[0] == "a-cp312.whl"
    assert "MB, _cpu, _cuda (sm_80 sm_90); passed beside torch 2.13.0; " in last[1]
    assert last[2] == "  pip finds no torch 2.15.0 for CPython 3.12"
    assert last[3].startswith("CPython 2.0: no wheel; not on PATH")


def test_a_wheel_that_passed_beside_no_torch_is_not_for_upload(release) -> None:
    def fails(torch: str) -> None:
        raise Failed("stackelberg verify failed beside torch 2.13.0")

    for tried in (fails, only("9.9.9")):
        status, printed, in_dist = release("--beside", "2.13.0", tried=tried)
        assert (status, in_dist) == (1, [])
        assert printed.splitlines()[-1].startswith("FAILED: CPython 3.")


def test_no_interpreter_at_all_is_a_failure(release) -> None:
    assert release("--pythons", "2.0")[0] == 1


def test_why_a_build_failed_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, status, "copying a.py\nbuilt a.whl\n")

    monkeypatch.setattr(subprocess, "run", fake)
    status = 0
    wheels.run_build(Path("python"), "--wheel", cwd=tmp_path, env={})
    printed = capsys.readouterr().out
    assert printed.endswith("\nbuilt a.whl\n")
    assert "copying" not in printed
    status = 1
    with pytest.raises(Failed):
        wheels.run_build(Path("python"), "--wheel", cwd=tmp_path, env={})
    assert "copying a.py" in capsys.readouterr().out


def test_one_interpreter_builds_in_the_environment_that_runs_this(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands: list[str] = []
    monkeypatch.setattr(
        wheels, "run", lambda *command: commands.append(" ".join(map(str, command)))
    )
    this = ".".join(map(str, sys.version_info[:3]))
    python = wheels.building_python(Interpreter(Path("python"), this), [])
    assert (python, commands) == (Path(sys.executable), [])
    other = wheels.building_python(Interpreter(Path("/opt/python3.99"), "3.99.1"), ["--pre"])
    assert other.parts[-3:] == ("env-cp399", "bin", "python")
    assert commands[0].startswith("/opt/python3.99 -m venv ")
    assert " --pre -r " in commands[1]
    assert commands[1].endswith("requirements/build.txt")
