"""The process that imports the library only to time it."""

from __future__ import annotations

import pytest
from stackelberg_fused.benchmarks.clean_process import CleanProcess, CleanProcessFailed
from stackelberg_fused.benchmarks.workloads import TORCH_FUSED


def test_the_process_answers_and_says_what_went_wrong():
    with CleanProcess() as process:
        request = {"operators_after": TORCH_FUSED, "repeats": 1, "threads": 1}
        samples = process.ask(request)["samples_ns"]
        assert len(samples) == 3
        assert all(ns > 0 for (ns,) in samples.values())
        request = {"contestant": TORCH_FUSED, "device": "cpu", "threads": 1}
        with pytest.raises(CleanProcessFailed, match="StopIteration"):
            process.ask(request | {"row": "no such row"})
        # the next request would start another process
        assert process._process is None
