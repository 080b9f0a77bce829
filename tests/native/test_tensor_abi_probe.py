"""A torch is read natively only where all that is read is what Python says."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from building import COMPILER
from needs import needs_native
from paths import SUPPORT
from patience import patience
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stackelberg_fused.native import tensor_abi, tensor_abi_verdict
from stackelberg_fused.native.tensor_abi import find_libtorch
from stackelberg_fused.native.tensor_abi_cache import Verdict
from stackelberg_fused.native.tensor_abi_probe import TensorAbi, make_samples, open_abi


@needs_native
def test_a_torch_laid_out_otherwise_is_refused() -> None:
    probe, other = torch.zeros(3, 2).t(), torch.zeros(2, 3)
    types, dispatch = (Tensor, nn.Parameter), Tensor.__torch_dispatch__
    with pytest.raises(RuntimeError, match="does not hold its implementation"):
        TensorAbi(types, dispatch, probe, probe._cdata + 8, probe.data_ptr())
    with pytest.raises(RuntimeError, match="not what they are expected"):
        TensorAbi(types, dispatch, probe, probe._cdata, probe.data_ptr() + 4)
    with pytest.raises(RuntimeError, match="not what they are expected"):
        TensorAbi(types, dispatch, other, other._cdata, other.data_ptr())
    with pytest.raises(RuntimeError, match="nowhere is not loaded"):
        TensorAbi(types, dispatch, probe, probe._cdata, probe.data_ptr(), "nowhere")


def test_samples_tell_everything_apart() -> None:
    samples = make_samples()
    gradients = [t.grad for t in samples.values()]
    assert {None} < {g if g is None else g.layout for g in gradients}
    assert torch.sparse_coo in {g.layout for g in gradients if g is not None}
    assert len({t.dtype for t in samples.values()}) > 5
    assert {"cpu", "meta"} == {t.device.type for t in samples.values()}
    assert {0, 1, 2, 3, 7} <= {t.ndim for t in samples.values()}
    dense = [t for t in [*samples.values(), *gradients] if t is not None and not t.is_sparse]
    assert all(t.stride() != t.shape for t in dense if t.ndim)
    offset = [t.storage_offset() for t in dense if t.numel() and t.device.type == "cpu"]
    assert sum(map(bool, offset)) > len(offset) / 2


def build_fake(folder: Path, *flags: str) -> str:
    if not COMPILER:
        pytest.skip("no C++ compiler")
    path = str(folder / f"fake{''.join(flags)}.so")
    source, torchs = str(SUPPORT / "fake_libtorch.cpp"), f'-DTORCH="{find_libtorch()}"'
    command = [
        COMPILER,
        "-std=c++17",
        "-shared",
        "-fPIC",
        *flags,
        torchs,
        source,
        "-o",
        path,
        "-ldl",
    ]
    subprocess.run(command, check=True, timeout=patience(15))
    return path


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A loaded library that passes everything on to libtorch."""
    return ctypes.CDLL(build_fake(tmp_path_factory.mktemp("fake")))


@pytest.fixture
def wrong(fake: Any) -> Iterator[Any]:
    """Yield the name of the function in it that is wrong."""
    name = (ctypes.c_char * 64).in_dll(fake, "wrong")
    yield name
    name.value = b""


@needs_native
def test_functions_that_are_right_are_taken(fake: Any, wrong: Any) -> None:
    assert type(open_abi(fake._name)) is TensorAbi


@needs_native
@pytest.mark.parametrize(
    "name",
    [
        *(f"aoti_torch_get_{what}" for what in ("data_ptr", "dim", "sizes", "strides", "dtype")),
        *("aoti_torch_get_device_type", "aoti_torch_get_device_index", "aoti_torch_get_layout"),
        *("aoti_torch_layout_strided", "aoti_torch_new_tensor_handle", "aoti_torch_assign_tensors"),
        *("bump_version", "grad"),
    ],
)
def test_each_function_that_is_wrong_is_noticed(name: str, fake: Any, wrong: Any) -> None:
    wrong.value = name.encode()
    with pytest.raises(RuntimeError, match=r"native code|not what they|versions were|gradient"):
        open_abi(fake._name)


@needs_native
def test_a_gradient_returned_by_value_costs_a_child_and_no_more(tmp_path: Path) -> None:
    code = """
import ctypes, sys
from stackelberg_fused.native.tensor_abi_verdict import answer
import torch
ctypes.CDLL({path!r})
answer({path!r})
"""
    about = tensor_abi_verdict.subject(find_libtorch())
    found = [
        tensor_abi_verdict._ask(
            [sys.executable, "-c", code.format(path=build_fake(tmp_path, *flags))], about
        )
        for flags in ((), ("-DBY_VALUE",))
    ]
    assert found[0] == Verdict(True)
    assert not found[1].works
    assert found[1].reason


@needs_native
@pytest.mark.parametrize("mode", ["inference", "fake tensors", "meta", "double", "warnings"])
def test_modes_of_the_caller_do_not_matter(mode: str, undecided: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(tensor_abi, "is_tested", lambda version: True)
    random = torch.get_rng_state()
    if mode == "inference":
        with torch.inference_mode():
            found = tensor_abi.reading()
    elif mode == "fake tensors":
        with FakeTensorMode():
            found = tensor_abi.reading()
    elif mode == "meta":
        with torch.device("meta"):
            found = tensor_abi.reading()
    elif mode == "double":
        torch.set_default_dtype(torch.float64)
        found = tensor_abi.reading()
        torch.set_default_dtype(torch.float32)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = tensor_abi.reading()
    assert found.abi is not None, found.reason
    assert torch.equal(random, torch.get_rng_state())
