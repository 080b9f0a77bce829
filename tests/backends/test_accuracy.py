"""Float32 is near to exact: against a float64 oracle, no worse than torch's fused kernel on the same inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Options, kernel_options, normal
from tolerances import RMS_VERSUS_TORCH_FUSED, STEP
from torch import Tensor

from stackelberg_fused.tools.parity import ULP_BOUNDS

SIZE = 20_000


def _lognormal(step: int) -> Tensor:
    return normal(SIZE, step) * torch.exp(3 * normal(SIZE, step + 1))


def _drifting(step: int) -> Tensor:
    return normal(SIZE, 1) + 0.1 * normal(SIZE, step)


def _rare(step: int) -> Tensor:
    return normal(SIZE, step) * (normal(SIZE, step + 1) > 1.5)


def _shrinking(step: int) -> Tensor:
    return normal(SIZE, step) * 0.5**step


GRADIENTS = {
    "normal": lambda step: normal(SIZE, step),
    "tiny": lambda step: normal(SIZE, step) * 1e-7,
    "lognormal": _lognormal,
    "drifting": _drifting,
    "rare": _rare,
    "shrinking": _shrinking,
}


def _run(optimizer: Any, gradients: Any, steps: int) -> dict[str, Tensor]:
    (param,) = optimizer.param_groups[0]["params"]
    for step in range(steps):
        param.grad = gradients(step).to(param.dtype)
        optimizer.step()
    state = {k: v for k, v in optimizer.state[param].items() if k != "step" and v is not None}
    return {"param": param.detach(), **state}


def _rms(actual: Tensor, exact: Tensor) -> float:
    return (actual.double() - exact).square().mean().sqrt().item()


def test_verify_holds_backends_to_these_tolerances() -> None:
    assert {name: tolerance.ulps for name, tolerance in STEP.items()} == ULP_BOUNDS


@pytest.mark.parametrize("steps", [1, 2, 30])
@pytest.mark.parametrize("gradients", GRADIENTS)
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_error_is_no_larger_than_torchs(options: Options, gradients: str, steps: int) -> None:
    start = normal(SIZE, 12345)
    make = GRADIENTS[gradients]

    def param(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(start.to(dtype, copy=True))]

    lr = 1e-2
    exact = _run(options.ours(param(torch.float64), lr=lr, backend="reference"), make, steps)
    ours = _run(options.ours(param(), lr=lr, backend="cpu"), make, steps)
    torchs = _run(options.torchs(param(), lr=lr, foreach=None, fused=True), make, steps)
    for name, value in exact.items():
        mine, theirs = _rms(ours[name], value), _rms(torchs[name], value)
        assert mine <= RMS_VERSUS_TORCH_FUSED * theirs, (
            f"{name}: {mine:.4g}, torch {theirs:.4g}, {mine / theirs}"
        )
