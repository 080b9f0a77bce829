"""The command line: what it lists, and that it says what is missing instead of falling over."""

from __future__ import annotations

import subprocess
import sys

import pytest

import stackelberg_fused as sf
from stackelberg_fused.cli import COMMANDS, main


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
