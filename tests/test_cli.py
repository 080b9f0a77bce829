"""The command line: what it lists, and that it says what is missing instead of falling over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

import stackelberg_fused as sf
from stackelberg_fused.cli import COMMANDS, main

PRECISION = ROOT / "benchmarks" / "results" / "experiments" / "precision.json"


def test_without_a_command_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == sf.__version__


@pytest.mark.parametrize("text", ["0", "-3", "nan", "inf", "x"])
def test_numbers_that_make_no_sense_are_refused(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--seconds", text])
    assert "argument --seconds" in capsys.readouterr().err


def _without_torch(code: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.modules['torch'] = None; {code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_doctor_runs_without_torch() -> None:
    done = _without_torch("from stackelberg_fused.cli import main; main(['doctor'])")
    assert "pip install 'torch" in done.stdout
    assert "Traceback" not in done.stderr


def test_other_commands_say_that_torch_is_missing() -> None:
    done = _without_torch("from stackelberg_fused.cli import main; sys.exit(main(['train']))")
    assert done.returncode == 2
    assert "train needs torch" in done.stderr


def test_names_that_need_torch_say_so() -> None:
    done = _without_torch("import stackelberg_fused as sf; sf.StackelbergAdam")
    assert "stackelberg_fused.StackelbergAdam needs torch" in done.stderr


def test_dir_lists_public_names() -> None:
    assert dir(sf) == sorted(sf.__all__)
    assert [name for name in dir(sf) if name.startswith("_")] == ["__version__"]
    done = _without_torch("import stackelberg_fused as sf; print(len(dir(sf)))")
    assert int(done.stdout) == len(sf.__all__)


def test_usage_names_the_program_that_was_called(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert capsys.readouterr().out.startswith("usage: stackelberg doctor ")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_more_than_the_library(command: str) -> None:
    missing = ("rich", "matplotlib", "sklearn", "scipy", "gymnasium", "pytest", "pytest_benchmark")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({missing}))
from stackelberg_fused.cli import main
main([{command!r}, "--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: stackelberg {command} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["train", "--quick"], ["experiment", "digits", "--quick"]])
def test_what_a_command_needs_beyond_that_is_named(arguments: list[str]) -> None:
    code = f"""
import sys
sys.modules["rich"] = None
from stackelberg_fused.cli import main
sys.exit(main({arguments}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"error: {arguments[0]} needs rich" in done.stderr
    assert "pip install rich" in done.stderr


def test_a_module_of_our_own_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "doctor", ("stackelberg_fused.tools.nowhere", ""))
    with pytest.raises(ModuleNotFoundError):
        main(["doctor"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends no program so")
@pytest.mark.parametrize(
    "arguments, status",
    [
        (["doctor", "--json"], 141),
        (["experiment", "precision", "--redraw", str(PRECISION), "--out", "{out}"], 1),
        # argparse takes no notice
        (["train", "--help"], 0),
        ([], 2),
    ],
)
def test_a_reader_who_leaves_is_no_error(arguments: list[str], status: int, tmp_path: Path) -> None:
    arguments = [argument.format(out=tmp_path) for argument in arguments]
    command = [sys.executable, "-m", "stackelberg_fused", *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (status, "")


def test_a_broken_pipe_elsewhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise BrokenPipeError("a pipe of the command's own")

    monkeypatch.setattr("stackelberg_fused.tools.doctor.run", broken)
    with pytest.raises(BrokenPipeError, match="command's own"):
        main(["doctor"])
