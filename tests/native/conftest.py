"""Fixtures for a torch that is not known yet."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from stackelberg_fused.native import tensor_abi, tensor_abi_verdict
from stackelberg_fused.native.tensor_abi_cache import Verdict


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has asked yet how tensors are read."""
    monkeypatch.setattr(tensor_abi, "_reading", None)
    monkeypatch.delenv("STACKELBERG_TENSOR_ABI", raising=False)


@pytest.fixture
def unknown(undecided: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A torch that the tests have not run; the folder of the cache."""
    monkeypatch.setattr(tensor_abi, "TESTED", ("0.1",))
    monkeypatch.setenv("STACKELBERG_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """Answers that children will give, last one first; none is started."""
    answers: list[Verdict] = []
    monkeypatch.setattr(tensor_abi_verdict, "_ask", lambda command, about: answers.pop())
    return answers
