"""The folders of a checkout."""

from __future__ import annotations

from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
CSRC = ROOT / "csrc"
RESULTS = ROOT / "benchmarks" / "results"
EXPERIMENT_RESULTS = RESULTS / "experiments"
