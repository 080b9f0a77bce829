"""Shows what only a GPU can: bits of the real kernels, streams, launches, no synchronisation, uploads in flight.

The parity matrix on a GPU is part of tests/backends/test_parity.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from cases import SIZES, gradient
from checks import all_params, assert_same_optimizers
from kernel_problem import FIELDS, TURNS, Problem
from torch import Tensor

import stackelberg_fused as sf
from stackelberg_fused.groups.rules import RULES

pytestmark = pytest.mark.gpu

# about 50 ms: what is enqueued behind it is still in flight when the host gets back
BUSY_CYCLES = 100_000_000


def _skip_unless_available(backend: str) -> None:
    status = next(status for status in sf.backends() if status.name == backend)
    if not status.available:
        pytest.skip(status.reason)


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    _skip_unless_available(request.param)
    return request.param


def _run_on_gpu(problem: Problem, backend: str) -> np.ndarray:
    """The memory after a launch over tables and buffers on the GPU."""
    memory = torch.from_numpy(problem.memory).cuda()
    host = problem.memory.ctypes.data
    problem.move(host, memory.data_ptr())
    tables = [problem.records, problem.tiles, problem.rows]
    records, tiles, rows = (torch.from_numpy(table.view(np.uint8)).cuda() for table in tables)
    problem.move(memory.data_ptr(), host)
    if backend == "cuda":
        from stackelberg_fused import _cuda

        args = problem.args(*(table.data_ptr() for table in (records, tiles, rows)))
        stream = torch.cuda.current_stream()
        _cuda.step(args, stream.device_index, stream.cuda_stream)
    else:
        from stackelberg_fused.triton_kernels.launch_options import LaunchOptions
        from stackelberg_fused.triton_kernels.step import launch_step

        words = records.view(torch.int64), tiles.view(torch.int64), rows.view(torch.float32)
        more = {name: bool(problem.more.get(name)) for name in ("takes_turns", "zero_grads")}
        launch_step(*words, 0, len(problem.tiles), 0, problem.present, LaunchOptions(**more))
    return memory.cpu().numpy()


def _check_against_cpu(problem: Problem, backend: str) -> None:
    problem.check(_run_on_gpu(problem, backend), problem.updated_by_cpu())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_the_bits_of_the_cpu_kernel(backend: str, rule: int) -> None:
    _check_against_cpu(Problem((rule,)), backend)


def test_a_launch_that_mixes_all_rules(backend: str) -> None:
    _check_against_cpu(Problem(RULES, absent=(3, 9, 17)), backend)


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("field", FIELDS)
def test_every_buffer_at_every_4_byte_offset(backend: str, field: str, shift: int) -> None:
    _check_against_cpu(Problem(RULES, {field: shift}), backend)


@pytest.mark.parametrize("zero_grads", [0, 1])
@pytest.mark.parametrize("turns", [(), tuple(TURNS)], ids=["no turns", "turns"])
def test_turns_and_clearing(backend: str, turns: tuple[str, ...], zero_grads: int) -> None:
    absent = tuple(range(1, 10 * len(RULES), 3))
    _check_against_cpu(Problem(RULES, turns=turns, zero_grads=zero_grads, absent=absent), backend)


def test_zeros_subnormals_infinities_and_nan(backend: str) -> None:
    if backend == "triton":
        import triton

        if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 6):
            pytest.skip("div_rn and sqrt_rn of Triton before 3.6 flush subnormals to zero")
    _check_against_cpu(Problem(RULES, special=True), backend)


WHOLE: dict[str, Any] = {
    "max_grad_norm": {"body": 1.0, "head": 0.5},
    "ema_decay": 0.9,
    "update_every": {"body": 2},
    "update_every_grads": "mean",
}


class Twins:
    """The same training on a GPU and on the CPU."""

    def __init__(self, backend: str, **settings: Any) -> None:
        self.gpu = self._make("cuda", backend, **settings)
        self.cpu = self._make("cpu", "cpu", **settings)

    @staticmethod
    def _make(device: str, backend: str, **settings: Any) -> sf.StackelbergAdamW:
        values = [gradient(n, k).to(device, copy=True) for k, n in enumerate(SIZES)]
        params = [torch.nn.Parameter(value) for value in values]
        half = len(params) // 2
        groups = [
            {"params": params[:half], "role": "head", "rule": "sgd", "momentum": 0.9},
            {"params": params[half:]},
        ]
        return sf.StackelbergAdamW(groups, lr=1e-2, backend=backend, **settings)

    def gradients(self, seed: int, offset: int = 0) -> list[tuple[Tensor, Tensor]]:
        """A gradient and the parameter it is for, on both sides; each `offset` floats into its allocation."""
        return [
            (p, gradient(p.numel() + offset, 1000 * seed + k).to(p.device, copy=True)[offset:])
            for side in (self.gpu, self.cpu)
            for k, p in enumerate(all_params(side))
        ]

    def set_gradients(self, seed: int, offset: int = 0) -> None:
        for p, grad in self.gradients(seed, offset):
            p.grad = grad

    def step(self, role: str | None = None) -> None:
        for side in (self.gpu, self.cpu):
            side.step(role=role)

    def check(self) -> None:
        torch.cuda.synchronize()
        assert_same_optimizers(self.gpu, self.cpu)


@contextmanager
def _errors_on_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_steps_of_each_role_and_every_gradient_offset(backend: str) -> None:
    twins = Twins(backend)
    for i, role in enumerate((None, "head", "body", "head", None)):
        twins.set_gradients(i, offset=i % 4)
        twins.step(role)
    twins.check()
    assert twins.gpu.launches == 5


@pytest.mark.parametrize("settings", [{}, WHOLE], ids=["step", "whole step"])
def test_a_step_never_waits_for_the_gpu(backend: str, settings: dict[str, Any]) -> None:
    twins = Twins(backend, **settings)
    if settings:  # a scaler's: counts live on the device from now on
        for side in (twins.gpu, twins.cpu):
            device = all_params(side)[0].device
            side.found_inf = torch.zeros((), device=device)
            side.grad_scale = torch.full((), 4.0, device=device)
    for i in range(2):
        twins.set_gradients(i)
        twins.step()  # allocates state, compiles
    for i in range(2, 6):
        twins.set_gradients(i)
        torch.cuda.synchronize()
        torch.cuda._sleep(BUSY_CYCLES)
        with _errors_on_sync():
            twins.gpu.step()
        assert not torch.cuda.current_stream().query(), "the step waited"
        twins.cpu.step()
    twins.check()


def test_uploads_in_flight_are_not_overwritten(backend: str) -> None:
    twins = Twins(backend)
    twins.set_gradients(0)
    twins.step()
    # all alive at once, so that every step finds its gradients elsewhere
    gradients = [twins.gradients(i) for i in range(1, 13)]
    torch.cuda.synchronize()
    torch.cuda._sleep(BUSY_CYCLES)
    for assigned in gradients:
        for p, grad in assigned:
            p.grad = grad
        twins.gpu.step()
    assert not torch.cuda.current_stream().query(), (
        "the first step was over before the last was enqueued"
    )
    for assigned in gradients:
        for p, grad in assigned:
            p.grad = grad
        twins.cpu.step()
    twins.check()


def test_another_stream(backend: str) -> None:
    twins = Twins(backend)
    for i in range(6):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(BUSY_CYCLES // 10)
            twins.set_gradients(i)
            twins.step()
        torch.cuda.current_stream().wait_stream(side)
    twins.check()


def test_roles_on_streams_of_their_own(backend: str) -> None:
    """The players share no parameter, only the tables: their steps need no order from the caller."""
    twins = Twins(backend)
    twins.set_gradients(0)
    twins.step()
    streams = {"head": torch.cuda.Stream(), "body": torch.cuda.Stream()}
    twins.set_gradients(1)
    torch.cuda.synchronize()
    for _ in range(4):
        for role, stream in streams.items():
            with torch.cuda.stream(stream):
                torch.cuda._sleep(BUSY_CYCLES // 20 if role == "head" else 0)
                twins.step(role)
    twins.check()


def _profiled(
    work: Callable[[], None], within: str = "", runtime_calls: list[str] | None = None
) -> list[str]:
    """Names of what ran on the GPU.

    Args:
        runtime_calls: gets the names of the CUDA runtime's functions that were called in the range `within`.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    # ranges of the host, such as torch's around every optimizer's step, are repeated on the device's side
    ranges = {event.name for event in profiler.events() if event.device_type == DeviceType.CPU}
    if runtime_calls is not None:
        on_host = [e for e in profiler.events() if e.device_type == DeviceType.CPU]
        around = next(e.time_range for e in on_host if e.name == within)
        runtime_calls += [
            e.name
            for e in on_host
            if e.name.startswith("cuda") and around.start <= e.time_range.start <= around.end
        ]
    return [event.name for event in events if event.name not in ranges]


@pytest.mark.parametrize("num_groups", [2, 465])
def test_one_launch_per_step(backend: str, num_groups: int) -> None:
    probe = torch.ones(8, device="cuda")
    if not _profiled(lambda: probe.add_(1)):
        pytest.skip("the profiler sees no kernels on this machine")
    params = [torch.nn.Parameter(torch.randn(100, device="cuda")) for _ in range(num_groups)]
    groups = [
        {"params": [p], "lr": 1e-3 * (i + 1), "role": "head" if i % 2 else "body"}
        for i, p in enumerate(params)
    ]
    opt = sf.StackelbergAdamW(groups, backend=backend)
    for p in params:
        p.grad = torch.randn_like(p)
    opt.step()

    def three_steps() -> None:
        for _ in range(3):
            opt.step()

    seen = _profiled(three_steps)
    copies = [name for name in seen if name.startswith("Memcpy HtoD")]
    kernels = [name for name in seen if not name.startswith("Memcpy")]
    assert len(kernels) == 3, kernels
    assert all("step_kernel" in name for name in kernels), kernels
    assert len(copies) <= 3, seen  # rows, once per step; gradients were where they had been
    assert opt.launches == 4


def test_a_whole_step_is_two_launches_and_no_synchronisation(backend: str) -> None:
    from torch.profiler import record_function

    probe = torch.ones(8, device="cuda")
    if not _profiled(lambda: probe.add_(1)):
        pytest.skip("the profiler sees no kernels on this machine")
    params = [torch.nn.Parameter(torch.randn(5000, device="cuda")) for _ in range(6)]
    groups = [{"params": params[:4]}, {"params": params[4:], "role": "head"}]
    opt = sf.StackelbergAdamW(groups, backend=backend, grads="flat", **WHOLE)
    opt.found_inf, opt.grad_scale = torch.zeros((), device="cuda"), torch.ones((), device="cuda")
    for _ in range(2):
        opt.step(zero_grad=True)
    calls: list[str] = []

    def four_steps() -> None:
        with record_function("four steps"):
            for _ in range(4):
                opt.step(zero_grad=True)

    kernels = [n for n in _profiled(four_steps, "four steps", calls) if not n.startswith("Mem")]
    assert len(kernels) == 8, kernels
    assert all("step_kernel" in n or "statistics_kernel" in n for n in kernels), kernels
    assert opt.launches == 12
    assert calls, "the profiler sees no runtime calls on this machine"
    assert not [name for name in calls if "Synchronize" in name or name == "cudaMemcpy"], calls


def test_capture_is_refused(backend: str) -> None:
    twins = Twins(backend)
    twins.set_gradients(0)
    twins.step()
    torch.cuda.synchronize()
    other = torch.zeros(8, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        other.add_(1)
        with pytest.raises(RuntimeError, match="CUDA graph"):
            twins.gpu.step()
    twins.check()


def test_more_than_2_to_the_31_elements(backend: str) -> None:
    count = 2**31 + 4097
    free, _ = torch.cuda.mem_get_info()
    if free < 5 * 4 * count:
        pytest.skip(f"{free / 2**30:.0f} GiB of GPU memory are free, 40 are needed")
    param = torch.nn.Parameter(torch.ones(count, device="cuda"))
    param.grad = torch.full_like(param, 0.5)
    opt = sf.StackelbergSGD([param], lr=0.5, backend=backend, flatten=False)
    opt.step()
    assert bool((param.detach() == 0.75).all())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_parameters_on_a_device_that_is_not_the_current_one(backend: str) -> None:
    here = torch.cuda.current_device()
    param = torch.nn.Parameter(torch.ones(5000, device="cuda:1"))
    opt = sf.StackelbergSGD([param], lr=0.5, backend=backend)
    for _ in range(2):
        param.grad = torch.ones_like(param)
        opt.step()
    assert torch.cuda.current_device() == here
    assert bool((param.detach() == 0).all())
    assert (
        torch.ones(3, device="cuda").sum().item() == 3
    )  # torch's own launches still go to its device
