"""Models of the rows with a backward pass."""

from __future__ import annotations

import pytest
import torch
from stackelberg_fused.benchmarks.models import training_workloads


@pytest.mark.parametrize(
    ("workload", "parameters"),
    list(zip(training_workloads(), [3_307_008, 211_530, 316_074, 163_037_184], strict=True)),
    ids=lambda value: getattr(value, "name", ""),
)
def test_models_have_the_size_that_their_names_say(workload, parameters):
    with torch.device("meta"):
        model = workload.model()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert 0 < sum(workload.in_head()) < len(list(model.parameters()))
