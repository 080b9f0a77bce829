"""A little of each part of `make soak`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import TESTS
from patience import patience


def test_a_part_that_there_is_not_is_refused() -> None:
    command = [sys.executable, str(TESTS / "soak" / "soak.py"), "--only", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(10))
    assert done.returncode == 2
    assert "invalid choice: 'nothing'" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="parts read /proc, and set limits of Linux")
def test_each_part_runs(tmp_path: Path) -> None:
    report = tmp_path / "soak.json"
    parts = ("kills", "long_life", "many_tensors", "many_groups", "no_room", "huge")
    command = [sys.executable, str(TESTS / "soak" / "soak.py"), "--scale", "0.01"]
    command += [f"--only={part}" for part in parts] + ["--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(120))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert list(found) == list(parts)
    assert found["kills"]["same_bits"]
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(parts)
