"""Libraries that train: imported where a test runs, and not by the collection, which every process makes."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def lightning() -> Any:
    pytest.importorskip("lightning.pytorch")
    return pytest.importorskip("lightning")


@pytest.fixture(scope="session")
def transformers() -> Any:
    pytest.importorskip("accelerate")
    return pytest.importorskip("transformers")
