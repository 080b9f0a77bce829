"""What both compilers emit, launch by launch beside the CUDA sources on the host: every buffer has the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import groups_of, set_gradients
from host_cuda.build import unavailable
from scaled import ADAM, STEPS, train_scaled
from torch import nn

import stackelberg_fused as sf

from .beside_host import BesideHost
from .catcher import BACKENDS
from .caught_launch import CaughtLaunch
from .host_executor import execute
from .interpreted import Interpreted

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
by_compiler = pytest.mark.parametrize(
    "compiler",
    [
        "nvcc",
        pytest.param("triton", marks=pytest.mark.xdist_group("Triton's compiler")),
    ],
)
# with sums of squares, of which a parameter shows only what is left after two roundings
CASES: dict[str, dict[str, Any]] = {
    "clipped": {"max_grad_norm": 1.0},
    "clipped by role": {"max_grad_norm": {"body": 0.5, "head": 1.0}},
    "a ball": {"constraint": sf.L2Ball(1.5)},
    "a ball, counted": {"constraint": sf.L2Ball(1.5), "capturable": True, "ema_decay": 0.9},
    "a simplex": {"constraint": {"head": sf.Simplex(1.5)}},
}


@pytest.mark.parametrize("name", CASES)
@by_compiler
def test_every_buffer_of_every_launch(compiler: str, name: str) -> None:
    status = BACKENDS[compiler].status()
    if not status.available:
        pytest.skip(status.reason)
    checked = BesideHost(Interpreted())
    optimizer = sf.StackelbergAdamW(
        groups_of([[5, 4097], [17, 300]]),
        lr=0.01,
        backend=BACKENDS[compiler](checked),
        **CASES[name],
    )
    for number in range(3):
        set_gradients(optimizer.param_groups, number)
        optimizer.step()
    assert len(checked.launches) == 3 * 2


@by_compiler
def test_under_a_gradient_scaler(compiler: str) -> None:
    """With norms of infinity and NaN."""
    status = BACKENDS[compiler].status()
    if not status.available:
        pytest.skip(status.reason)
    checked = BesideHost(Interpreted())
    backend = BACKENDS[compiler](checked)
    optimizer = ADAM.ours(groups_of([[5], [17]]), backend=backend, fused=True, max_grad_norm=1.0)
    train_scaled(sf.GradScaler, optimizer)
    assert len(checked.launches) == 2 * STEPS


@by_compiler
def test_a_difference_is_named(compiler: str) -> None:
    def off_by_one(caught: CaughtLaunch) -> None:
        execute(caught)
        p.data[3] += 1.0

    status = BACKENDS[compiler].status()
    if not status.available:
        pytest.skip(status.reason)
    p = nn.Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    optimizer = sf.StackelbergSGD([p], lr=0.5, backend=BACKENDS[compiler](BesideHost(off_by_one)))
    message = (
        r"step_kernel.*1 words of param\[0\] differ, first at byte 12: 0000c03f, expected 0000003f"
    )
    with pytest.raises(AssertionError, match=message):
        optimizer.step()
