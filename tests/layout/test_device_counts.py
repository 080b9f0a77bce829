"""capturable=True: counts and rates where a CUDA graph finds them; replayed through the kernels run on the host."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import (
    MIXED,
    Options,
    groups_of,
    kernel_options,
    set_gradients,
    sizes_for,
    step,
)
from checks import all_params, assert_same_bits, assert_same_optimizers
from host_cuda.backend import HostCudaBackend
from needs import needs_shim
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
OPTIONS = [*kernel_options(), MIXED]


def _optimizer(options: Options, backend: str, capturable: bool, num_groups: int = 7) -> Any:
    instance, device = chosen(backend)
    groups = groups_of(sizes_for(num_groups), device, mixed=options.mixed)
    return options.ours([{**group, "capturable": capturable} for group in groups], backend=instance)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@by_backend
def test_same_bits_as_with_counts_on_the_host(backend: str, options: Options) -> None:
    if is_interpreting() and options.rule == "adam":
        pytest.skip("left out: the interpreter's time")
    ours, plain = (_optimizer(options, backend, capturable) for capturable in (True, False))
    for number in range(4):
        for optimizer in (ours, plain):
            set_gradients(optimizer.param_groups, number, 3 if number % 2 else 0)
            optimizer.step(role="head" if number == 2 else None)
    assert_same_optimizers(ours, plain)
    assert ours.launches == plain.launches
    counted = ours._engine.units[0].table.counts is not None
    assert counted == (backend in ("cuda", "triton", "cuda-on-host"))


@needs_shim
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_replay_takes_the_next_step(options: Options) -> None:
    ours, eager = (_optimizer(options, "cuda-on-host", capturable) for capturable in (True, False))
    step(ours, eager)
    set_gradients(ours.param_groups, 1)
    set_gradients(eager.param_groups, 1)
    ours.step()
    for _ in range(5):
        ours._engine.units[0].backend.replay()
        # parameters without elements are counted outside of the kernel
        table = ours._engine.units[0].table
        table.steps[table.counts._empty] += 1
    for _ in range(6):
        eager.step()
    assert_same_optimizers(ours, eager)


@needs_shim
def test_a_rate_in_a_tensor_may_change_between_replays() -> None:
    backend = HostCudaBackend()
    params = [[nn.Parameter(torch.ones(5000)) for _ in range(2)] for _ in range(2)]
    rates = [torch.tensor(0.1), torch.tensor(0.2, dtype=torch.float64)]
    groups = [
        {"params": [p], "lr": rate, "capturable": True}
        for p, rate in zip(params[0], rates, strict=True)
    ]
    ours = sf.StackelbergAdamW(groups, backend=backend)
    plain = sf.StackelbergAdamW(
        [{"params": [p], "lr": float(r)} for p, r in zip(params[1], rates, strict=True)],
        backend="cpu",
    )
    step(ours, plain)
    set_gradients(plain.param_groups, 1)
    set_gradients(ours.param_groups, 1)
    ours.step()
    plain.step()
    for number in range(4):
        for k, rate in enumerate(rates):
            rate.fill_(0.05 * (number + k))
            plain.param_groups[k]["lr"] = float(rate)
        backend.replay()
        plain.step()
    assert_same_optimizers(ours, plain)


@by_backend
def test_state_dicts(backend: str) -> None:
    ours = _optimizer(ADAM, backend, True)
    step(ours)
    step(ours, seed=1)
    again = _optimizer(ADAM, backend, True)
    again.load_state_dict(copy.deepcopy(ours.state_dict()))
    plain = _optimizer(ADAM, backend, False)
    plain.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p, q, r in zip(*map(all_params, (ours, again, plain)), strict=True):
        q.data.copy_(p.data)
        r.data.copy_(p.data)
    step(ours, again, plain, seed=2)
    assert_same_optimizers(again, ours)
    assert_same_optimizers(plain, ours)
    steps = [ours.state[p]["step"] for p in all_params(ours)]
    assert all(float(s) == 3 for s in steps)
    counted = backend in ("cuda", "triton", "cuda-on-host")
    if counted:
        assert {s.device for s in steps} == {all_params(ours)[0].device}
    step(copy.deepcopy(ours), seed=3)


@by_backend
def test_counts_filled_in_place(backend: str) -> None:
    ours, plain = (_optimizer(ADAM, backend, capturable, 1) for capturable in (True, False))
    step(ours, plain)
    for optimizer in (ours, plain):
        for p in all_params(optimizer):
            optimizer.state[p]["step"].fill_(40.0)
    step(ours, plain, seed=1)
    assert_same_optimizers(ours, plain)


@by_backend
def test_a_rule_that_changes(backend: str) -> None:
    ours, plain = (
        _optimizer(Options("sgd", {"lr": 0.1, "dampening": 0.5}), backend, capturable, 2)
        for capturable in (True, False)
    )
    for number, momentum in enumerate([0.0, 0.9, 0.9, 0.0, 0.9]):
        for optimizer in (ours, plain):
            optimizer.param_groups[0]["momentum"] = momentum
        step(ours, plain, seed=number)
    assert_same_optimizers(ours, plain)


@pytest.mark.gpu
@pytest.mark.parametrize("constraint", [None, sf.L2Ball(2.0), sf.Simplex()], ids=str)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_cuda_graph(backend: str, constraint: Any) -> None:
    ours, eager = (_optimizer(ADAM, backend, capturable) for capturable in (True, False))
    other = _optimizer(ADAM, backend, False)
    ours.max_grad_norm = eager.max_grad_norm = 1.0
    for optimizer in (ours, eager):
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], device="cuda")
            group["constraint"] = constraint
    set_gradients(ours.param_groups, 1)
    set_gradients(eager.param_groups, 1)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ours.step()
    torch.cuda.current_stream().wait_stream(stream)
    eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    for number in range(100):
        step(other, seed=number % 3)
    for number in range(5):
        for optimizer in (ours, eager):
            for group in optimizer.param_groups:
                group["lr"].fill_(0.01 * (number + 1))
        graph.replay()
        eager.step()
    torch.cuda.synchronize()
    assert_same_optimizers(ours, eager)
    assert_same_bits(ours.last_step.grad_norm["total"], eager.last_step.grad_norm["total"])


@pytest.mark.gpu
def test_a_capture_without_a_step_before_is_refused() -> None:
    ours = _optimizer(ADAM, "cuda", True)
    set_gradients(ours.param_groups, 1)
    with (
        pytest.raises(RuntimeError, match="take a step before"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        ours.step()
