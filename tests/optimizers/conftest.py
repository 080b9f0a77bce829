"""Fixtures for gradients that are released."""

from __future__ import annotations

import pytest

from stackelberg_fused.optimizers import release


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some launches within a backward pass, and some parameters left for `step()`."""
    monkeypatch.setattr(release, "BATCH_BYTES", 8000)
