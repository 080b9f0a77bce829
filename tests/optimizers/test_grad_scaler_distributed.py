"""An infinity that one of two processes finds: both skip, as with torch's scalers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from needs import needs_gloo
from paths import SUPPORT
from patience import patience

SCRIPT = SUPPORT / "scaler_in_two_processes.py"


@pytest.mark.slow
@needs_gloo
def test_both_processes_skip(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=patience(100),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.endswith("checked\n")
