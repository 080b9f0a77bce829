"""The one module through which the host works with a GPU: torch's own calls, and nothing goes past it."""

from __future__ import annotations

import ast

import numpy as np
import pytest
import torch
from needs import needs_posed_gpu
from paths import ROOT
from recording.posed_device import GPU
from recording.training import recorded

from stackelberg_fused.memory import device_runtime

PACKAGE = ROOT / "stackelberg_fused"
MODULE = PACKAGE / "memory" / "device_runtime.py"
STEPPING = ("memory", "layout", "groups", "backends", "engine", "optimizers")
# questions about the machine, which enqueue nothing
QUESTIONS = {"is_available", "get_device_capability"}
# tensors that know their stream: nobody else is to be told that a copy, or memory, is used by another one
METHODS = {"record_stream", "pin_memory"}


def asked_past_it(source: str) -> set[str]:
    """What code asks of torch.cuda, or of tensors in their streams."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Attribute) and ast.unparse(node.value) == "torch.cuda":
                found.add(node.attr)
            if node.attr in METHODS:
                found.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg in METHODS:
            found.add(node.arg)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.cuda"):
            found |= {alias.name for alias in node.names}
    return found - QUESTIONS


def test_nothing_goes_past_it() -> None:
    paths = [path for folder in STEPPING for path in (PACKAGE / folder).rglob("*.py")]
    assert MODULE in paths
    found = {path.name: asked_past_it(path.read_text()) for path in paths if path != MODULE}
    assert {name: asked for name, asked in found.items() if asked} == {}


def test_what_goes_past_it_is_found() -> None:
    for line in (
        "torch.cuda.current_stream()",
        "from torch.cuda import Event",
        "tensor.record_stream(stream)",
        "torch.empty(3, pin_memory=True)",
    ):
        assert asked_past_it(line), line


def test_streams_and_events_are_torchs_own() -> None:
    names = {
        "Event": torch.cuda.Event,
        "Stream": torch.cuda.Stream,
        "current_stream": torch.cuda.current_stream,
        "is_capturing": torch.cuda.is_current_stream_capturing,
        "on_device": torch.cuda.device,
        "on_stream": torch.cuda.stream,
    }
    assert {name: getattr(device_runtime, name) for name in names} == names


ARRAYS = [np.arange(6, dtype=np.int64).reshape(2, 3), np.array([True, False]), np.zeros(0)]


def test_uploaded_to_the_host_is_a_copy() -> None:
    for array in map(np.copy, ARRAYS):
        copy = device_runtime.uploaded(array, torch.device("cpu"))
        before = array.copy()
        array[:] = 1 - array
        assert copy.numpy().dtype == array.dtype
        assert np.array_equal(copy.numpy(), before)


@needs_posed_gpu
def test_the_host_does_not_wait_for_an_upload() -> None:
    with recorded() as gpu:
        copies = [(array, device_runtime.uploaded(array, GPU)) for array in ARRAYS]
        copies.append((ARRAYS[0].T.copy(), device_runtime.uploaded(ARRAYS[0].T, GPU)))
        assert gpu.waits == []
        for array, copy in copies:
            assert copy.cpu().numpy().dtype == array.dtype
            assert np.array_equal(copy.cpu().numpy(), array)
        with gpu.captured(), pytest.raises(RuntimeError, match="captured in a CUDA graph"):
            device_runtime.uploaded(ARRAYS[0], GPU)
        gpu.synchronize()
    assert gpu.reports == []
