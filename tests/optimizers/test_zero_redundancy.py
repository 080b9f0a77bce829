"""A process that has nothing of the head from ZeroRedundancyOptimizer steps as torch's, and says what all say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import SUPPORT

SCRIPT = SUPPORT / "zero_redundancy_in_two_processes.py"


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch is built without gloo",
)
def test_zero_redundancy_in_two_processes(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "store")], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.endswith("checked\n")
