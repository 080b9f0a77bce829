"""Clipping, scaling and counting on the device in interpreted Triton: those tests again, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from paths import TESTS
from patience import patience

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

FILES = (
    "layout/test_statistics.py",
    "layout/test_exact_norms.py",
    "layout/test_scaling.py",
    "layout/test_partial_norms.py",
    "layout/test_device_counts.py",
    "optimizers/test_ema_decay.py",
    "optimizers/test_grad_scaler.py",
    "optimizers/test_grad_scaler_uses.py",
    "optimizers/test_ema_weights.py",
    "optimizers/test_ema_decay_continued.py",
    "engine/test_step_plan.py",
    "engine/test_step_plan_continued.py",
    "engine/test_group_turns.py",
    "engine/test_state_requests.py",
    "engine/test_flat_gradients.py",
    "engine/test_edit_detector.py",
    "engine/test_engine_interrupted.py",
    "engine/test_sharded_balls.py",
    "layout/test_joint_sets.py",
    "backends/test_low_precision_parity.py",
    "backends/test_cautious.py",
    "optimizers/test_base_properties.py",
    "optimizers/test_release.py",
    "engine/test_sharded_bits.py",
    "optimizers/test_replacing.py",
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
    command.append(str(TESTS / name))
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=patience(100)
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
