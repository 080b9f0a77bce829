"""The row of peak memory: what the allocator counts is what the dtypes say."""

from __future__ import annotations

import pytest
from stackelberg_fused.benchmarks import peak_memory, report


def test_peaks_are_those_of_parameters_gradients_and_state():
    row = peak_memory.run("cpu", width=256)
    peaks = {entry["name"]: entry["peak_per_parameter"] for entry in row["entries"]}
    # p, g, m, v of 4 bytes; in a small model the batch of an update is a large part of it
    assert peaks["ours"] == pytest.approx(16, abs=0.5)
    assert peaks["torch fused, each alone"] == pytest.approx(12, abs=0.5)
    batch = 4 * 2**20 / row["parameters"]
    assert peaks["ours, release"] == pytest.approx(12 + batch, abs=0.5)
    assert len(list(report.lines(row))) == 2 + len(peaks)
