"""The backend that runs is the one that is said."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path

import pytest
import torch
from cases import step
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused import _cpu
from stackelberg_fused.backends import BACKENDS, BackendStatus
from stackelberg_fused.backends.cpu import CpuBackend


def _param(dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.ones(3, dtype=dtype))


def _switch_off(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        status = BackendStatus(name, False, "switched off")
        monkeypatch.setattr(BACKENDS[name], "status", classmethod(lambda cls, s=status: s))


def test_every_backend_says_whether_it_can_run() -> None:
    found = {status.name: status for status in sf.backends()}
    assert list(found) == ["reference", "cpu", "triton", "cuda"]
    assert found["reference"] == BackendStatus("reference", True)
    for status in found.values():
        assert bool(status.reason) != status.available


def test_auto_on_the_host() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert sf.StackelbergSGD([_param(dtype)]).backend == "cpu"
    for dtype, how in ((torch.float64, {}), (torch.bfloat16, {"constraint": sf.L2Ball(1.0)})):
        with pytest.warns(UserWarning, match=f"parameter 0 .*{dtype}.*reference") as caught:
            assert sf.StackelbergSGD([_param(dtype)], **how).backend == "reference"
        assert {w.filename for w in caught} == {__file__}


def test_one_launch_for_several_dtypes() -> None:
    params = [_param(dtype) for dtype in (torch.bfloat16, torch.float32, torch.float16)]
    optimizer = sf.StackelbergAdamW(
        [{"params": params[:2]}, {"params": params[2:], "role": "head"}], lr=0.1
    )
    before = [p.detach().clone() for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert (optimizer.launches, optimizer.backend) == (1, "cpu")
    assert all((p < old).all() for p, old in zip(params, before, strict=True))


def test_auto_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    _switch_off(monkeypatch, "cpu")
    with pytest.warns(UserWarning, match="cpu is not available: switched off"):
        assert sf.StackelbergSGD([_param()]).backend == "reference"


def test_the_warning_comes_once_for_a_dtype() -> None:
    with pytest.warns(UserWarning, match="reference"):
        optimizer = sf.StackelbergSGD([_param(torch.float64)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(optimizer)
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.param_groups[0]["role"] = "head"
        step(optimizer)
        step(copy.deepcopy(optimizer))
        optimizer.add_param_group({"params": [_param(torch.float64)]})
    ball = {"params": [_param(torch.bfloat16)], "constraint": sf.L2Ball(1.0)}
    with pytest.warns(UserWarning, match="bfloat16"):
        optimizer.add_param_group(ball)


def test_what_is_asked_for_gets_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.StackelbergSGD([_param()])
        sf.StackelbergSGD([_param(torch.bfloat16)], backend="reference")
        # a frozen part in another dtype is not stepped
        frozen = _param(torch.bfloat16).requires_grad_(False)
        sf.StackelbergSGD([_param(), frozen])


@pytest.mark.gpu
def test_auto_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    p = nn.Parameter(torch.ones(3, device="cuda"))
    available = {status.name for status in sf.backends() if status.available}
    assert sf.StackelbergSGD([p]).backend == ("cuda" if "cuda" in available else "triton")
    _switch_off(monkeypatch, "cuda")
    assert sf.StackelbergSGD([p]).backend == "triton"
    _switch_off(monkeypatch, "triton")
    assert sf.StackelbergSGD([p]).backend == "reference"


def test_chosen_once_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stackelberg_fused")
    optimizer = sf.StackelbergSGD([_param()])
    for seed in range(3):
        step(optimizer, seed=seed)
    lines = [r.getMessage() for r in caplog.records if "backend" in r.getMessage()]
    assert lines == ["StackelbergSGD: backend cpu"]


def test_ignored_hints_get_a_debug_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "stackelberg_fused")
    sf.StackelbergSGD([_param()], foreach=True)
    assert "foreach=True is ignored" in caplog.text
    assert "fused" not in [
        r.args[0] for r in caplog.records if r.levelno == logging.DEBUG and r.args
    ]


def test_a_backend_of_ones_own() -> None:
    class Counting(CpuBackend):
        calls = 0

        def step(self, work) -> int:
            self.calls += 1
            return super().step(work)

    backend = Counting()
    optimizer = sf.StackelbergAdamW([_param()], backend=backend)
    step(optimizer)
    assert backend.calls == optimizer.launches == 1


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "neon"])
def test_unknown_instruction_sets(isa: str) -> None:
    with pytest.raises(RuntimeError, match=f"no {isa} kernel"):
        _cpu.isa(isa)


def test_the_baseline_runs_everywhere() -> None:
    assert _cpu.isa("baseline") == "baseline"
    assert _cpu.thread_pool() in ("torch-openmp", "std::thread")


def test_threads_are_borrowed_from_torch() -> None:
    if not list(Path(torch.__file__).parent.glob("lib/libgomp*")):
        pytest.skip("this torch does not bring GNU OpenMP")
    assert _cpu.thread_pool() == "torch-openmp"
