"""Clipping, scaling and counting on the device in interpreted Triton: those tests again, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

FILES = (
    "test_clipping.py",
    "test_scaling.py",
    "test_capturable.py",
    "test_ema.py",
    "test_ema_swapped.py",
    "test_ema_continued.py",
    "test_update_every.py",
    "test_update_every_continued.py",
    "test_flat_gradients.py",
    "test_joint_sets.py",
    "test_narrow_parity.py",
)


@pytest.mark.slow
@pytest.mark.skipif(is_interpreting(), reason="this is that process")
@pytest.mark.parametrize("name", FILES)
def test_triton_interpreted_in_another_process(name: str) -> None:
    triton = next(status for status in sf.backends() if status.name == "triton")
    if not triton.available and "TRITON_INTERPRET" not in triton.reason:
        pytest.skip(triton.reason)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "triton"]
    command.append(str(Path(__file__).with_name(name)))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
