"""The scripts under examples/: each runs on a CPU, in seconds with few steps, and is short enough to read."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from patience import patience

FOLDER = ROOT / "examples"
# by file: the packages that it needs, options for a short run, and what it prints then
SCRIPTS = {
    "actor_critic": (("gymnasium",), ["--steps", "700"], r"step 700: mean return .* -\d+"),
    "bert_llrd_trainer": (
        ("transformers", "accelerate"),
        ["--epochs", "0.3"],
        r"accuracy 0\.\d+, with averaged weights 0\.\d+",
    ),
    "gan_two_rates": ((), ["--steps", "50"], r"step 50: .* of 8 modes"),
    "gpt_fsdp2": ((), ["--steps", "6"], r"rank 1 saved and loaded"),
    "lightning_alternating": (
        ("lightning", "sklearn"),
        ["--epochs", "1"],
        r"48 steps, accuracy 0\.\d+\nwith averaged weights 0\.\d+",
    ),
    "lora_plus": (("peft", "transformers"), ["--steps", "3"], r"ratio 16: loss \d"),
}


def test_every_script_is_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == SCRIPTS.keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_short_enough_to_read(name: str) -> None:
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    assert len(lines) < 80
    assert f"examples/{name}.py" in "\n".join(lines[:6])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_runs(name: str, tmp_path: Path) -> None:
    packages, options, expected = SCRIPTS[name]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, which is not installed")
    command = [sys.executable]
    if name == "gpt_fsdp2":
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*command, str(FOLDER / f"{name}.py"), *options],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=patience(60),
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(expected, ran.stdout), ran.stdout
    assert "Traceback" not in ran.stderr
