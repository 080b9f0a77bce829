"""Who reads tensors is decided once, and makes no difference but in time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from building import clean_environment
from cases import normal
from needs import needs_native
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.native import tensor_abi, tensor_abi_verdict
from stackelberg_fused.native.change_detection import PythonAddressSnapshot, make_address_snapshot
from stackelberg_fused.native.reader import NativeReader, PythonReader
from stackelberg_fused.native.tensor_abi import increment_versions
from stackelberg_fused.native.tensor_abi_cache import Verdict


@pytest.mark.parametrize(
    "version, tested",
    [
        ("2.13.0", True),
        ("2.13.7+cu130", True),
        ("2.13.0a0+git1234567", False),
        ("2.13.0rc1", False),
        ("2.130.0", False),
        ("2.1.3", False),
        ("3.0.0", False),
        ("strange", False),
    ],
)
def test_tested_versions_are_releases_of_known_minors(version: str, tested: bool) -> None:
    assert tensor_abi.is_tested(version) is tested


@needs_native
def test_importing_decides_nothing_and_a_known_torch_starts_no_process(tmp_path: Path) -> None:
    code = """
import subprocess, torch
def refuse(*_, **__): raise AssertionError("a process was started")
import stackelberg_fused as sf
from stackelberg_fused.native import tensor_abi
subprocess.Popen.__init__ = refuse
assert tensor_abi._reading is None
tensor_abi.is_tested = lambda version: True
param = torch.nn.Parameter(torch.zeros(3))
optimizer = sf.StackelbergSGD([param], lr=1.0, backend="cpu")
assert tensor_abi._reading.abi is not None, tensor_abi._reading
"""
    command = [sys.executable, "-c", code]
    env = clean_environment()
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_native
def test_a_verdict_is_asked_for_once(unknown: Path, children: list[Verdict]) -> None:
    children[:] = [Verdict(True)]
    found = tensor_abi.reading()
    assert found.abi is not None
    assert "have not run" in found.reason
    assert not children
    tensor_abi._reading = None  # as another process would begin
    assert tensor_abi.reading().abi is not None


@needs_native
def test_a_child_that_died_gives_no_and_the_reason(
    unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(tensor_abi_verdict, "_CHILD", code)
    found = tensor_abi.reading()
    assert found.abi is None
    assert "died of SIGSEGV" in found.reason
    assert found.increment_versions is tensor_abi.increment_in_python
    monkeypatch.setattr(tensor_abi_verdict, "_ask", None)  # nobody is asked again
    tensor_abi._reading = None
    assert tensor_abi.reading().reason == found.reason


@pytest.mark.parametrize("how", ["switched off", "no module", "no function"])
def test_python_takes_over_with_the_same_bits(
    how: str, undecided: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise RuntimeError("this torch has no aoti_torch_get_dim")

    sides = [[nn.Parameter(normal(size, size)) for size in (3, 1, 70)] for _ in range(2)]
    expected = sf.StackelbergAdamW(sides[0], backend="cpu")
    tensor_abi._reading = None
    if how == "switched off":
        monkeypatch.setenv("STACKELBERG_TENSOR_ABI", "0")
    else:
        monkeypatch.setattr(tensor_abi, "find_libtorch", None if how == "no module" else missing)
    ours = sf.StackelbergAdamW(sides[1], backend="cpu")
    assert type(ours._engine.units[0].gradients._reader) is PythonReader
    assert type(make_address_snapshot(sides[1])) is PythonAddressSnapshot
    for optimizer, params in ((ours, sides[1]), (expected, sides[0])):
        for seed in range(3):
            for p in params:
                p.grad = normal(p.numel(), seed)
            before = [p._version for p in params]
            optimizer.step()
            assert [p._version > v for p, v in zip(params, before, strict=True)] == [True] * 3
    assert all(torch.equal(p, q) for p, q in zip(*sides, strict=True))


@needs_native
def test_a_probe_that_disagrees_leaves_it_to_python(
    undecided: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagreeing() -> None:
        raise RuntimeError("of a tensor native code reads nonsense")

    monkeypatch.setattr(tensor_abi, "is_tested", lambda version: True)
    monkeypatch.setattr(tensor_abi, "open_abi", disagreeing)
    found = tensor_abi.reading()
    assert found.abi is None
    assert "reads nonsense" in found.reason


def test_versions_are_incremented_but_in_inference_mode() -> None:
    """Nor where the data of one that was made there is replaced: torch does not call it one, and it has no version."""
    with torch.inference_mode():
        without, replaced = torch.zeros(2), nn.Parameter(torch.zeros(2))
    replaced.data = torch.zeros(4)[1:3]
    assert not replaced.is_inference()
    with pytest.raises(RuntimeError, match="do not track version"):
        replaced._version  # noqa: B018
    view = torch.zeros(4, requires_grad=True).detach()[1:]
    usual = [nn.Parameter(torch.zeros(2)), view, nn.Parameter(torch.zeros(0))]
    by_python = tensor_abi.increment_in_python
    for others in ([without], [without, replaced]):
        for increment in (increment_versions, by_python):
            before = [t._version for t in usual]
            increment([*others, *usual])
            # twice is no matter to autograd
            assert all(t._version > v for t, v in zip(usual, before, strict=True))
            before = [t._version for t in usual]
            increment([*usual, *others])
            assert all(t._version > v for t, v in zip(usual, before, strict=True))


@needs_native
def test_the_native_reader_is_used_where_it_may_be() -> None:
    optimizer = sf.StackelbergAdamW([nn.Parameter(torch.zeros(3))], backend="cpu")
    assert type(optimizer._engine.units[0].gradients._reader) is NativeReader


@needs_native
def test_whatever_goes_wrong_with_a_verdict_python_takes_over(
    unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(library: str, again: bool) -> Verdict:
        raise AttributeError("git_version")

    monkeypatch.setattr(tensor_abi_verdict, "verdict", broken)
    assert tensor_abi.tensor_abi() is None
    assert "git_version" in tensor_abi.reading().reason
