"""The reference equals torch.optim to the last bit, because it defines the correct result of every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    OURS,
    Options,
    all_options,
    gradient,
    groups_of,
    kernel_options,
    normal,
    set_gradients,
)
from checks import all_params, assert_same_bits, assert_same_optimizers

STEPS = 50


def _twin(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**group, "params": [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]}
        for group in groups
    ]


def _run_both(options: Options, dtype: torch.dtype, steps: int, **settings: Any) -> tuple[Any, Any]:
    groups = groups_of([[1, 3, 130]], dtype=dtype)
    twins = _twin(groups)
    ours = options.ours(groups, backend="reference", **settings)
    torchs = options.torchs(twins, **settings)
    for step in range(steps):
        for side in (groups, twins):
            set_gradients(side, step)
        ours.step()
        torchs.step()
    return ours, torchs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("options", all_options(), ids=str)
def test_equals_torch(options: Options, dtype: torch.dtype) -> None:
    assert_same_optimizers(*_run_both(options, dtype, STEPS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_half_precision_is_torch_in_float32_rounded_after_each_step(
    options: Options, dtype: torch.dtype
) -> None:
    groups = groups_of([[1, 3, 130]], dtype=dtype)
    twins = [{**g, "params": [p.detach().float() for p in g["params"]]} for g in groups]
    ours, torchs = options.ours(groups, backend="reference"), options.torchs(twins)
    pairs = list(zip(all_params(ours), all_params(torchs), strict=True))
    for step in range(10):
        set_gradients(groups, step)
        for p, twin in pairs:
            twin.grad = None if p.grad is None else p.grad.float()
        ours.step()
        torchs.step()
        for p, twin in pairs:
            twin.copy_(twin.to(dtype))
            assert_same_bits(p.detach().float(), twin)
            for name, value in torchs.state.get(twin, {}).items():
                if value is not None:
                    assert_same_bits(ours.state[p][name], value)


@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_equals_torch_with_a_tensor_rate(options: Options) -> None:
    groups = groups_of([[1, 130]])
    twins = _twin(groups)
    for group in (*groups, *twins):
        group["lr"] = torch.tensor(0.1)
    ours = options.ours(groups, backend="reference")
    torchs = options.torchs(twins)
    for step in range(10):
        for optimizer in (ours, torchs):
            set_gradients(optimizer.param_groups, step)
            optimizer.param_groups[0]["lr"].mul_(0.9)
            optimizer.step()
    assert_same_optimizers(ours, torchs)


def test_equals_torch_with_tensor_betas() -> None:
    betas = (torch.tensor(0.9), torch.tensor(0.99))
    options = Options("adam", {"betas": betas})
    assert_same_optimizers(*_run_both(options, torch.float32, 10))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_nan_and_infinity_propagate_as_in_torch(options: Options, bad: float) -> None:
    params = [torch.nn.Parameter(normal(8, 1)) for _ in range(2)]
    ours = options.ours(params[:1], backend="reference")
    torchs = options.torchs(params[1:])
    for step in range(4):
        for p in params:
            p.grad = gradient(8, step).clone()
            p.grad[step] = bad
        ours.step()
        torchs.step()
    assert_same_optimizers(ours, torchs)


def _differentiable(make: Callable[..., Any], options: Options, lr: Any) -> tuple[Any, ...]:
    """Step on a quadratic; return the parameters and the gradients of the final loss in start, target and rate."""
    settings = options.settings
    # torch's own rule overwrites at the second step what autograd saved at the first
    once = settings.get("amsgrad") or (settings.get("momentum") and not settings.get("nesterov"))
    start = normal(5, 1).double().requires_grad_()
    target = normal(5, 2).double().requires_grad_()
    param = start.clone()
    optimizer = make([param], lr=lr, differentiable=True)
    for _ in range(1 if once else 3):
        loss = ((param - target) ** 2 * torch.arange(1.0, 6.0)).sum()
        (param.grad,) = torch.autograd.grad(loss, param, create_graph=True)
        optimizer.step()
    inputs = [start, target] + ([lr] if isinstance(lr, torch.Tensor) else [])
    return param.detach(), *torch.autograd.grad(((param - target) ** 2).sum(), inputs)


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_differentiable(options: Options, tensor_lr: bool) -> None:
    def rate() -> Any:
        return torch.tensor(0.05, dtype=torch.float64, requires_grad=True) if tensor_lr else 0.05

    ours = _differentiable(options.ours, options, rate())
    torchs = _differentiable(options.torchs, options, rate())
    for mine, theirs in zip(ours, torchs, strict=True):
        assert mine.abs().sum() > 0
        assert_same_bits(mine, theirs)


def test_differentiable_chooses_the_reference_and_moves_nothing() -> None:
    param = torch.nn.Parameter(normal(5, 1))
    address = param.data_ptr()
    optimizer = OURS["adamw"]([param], differentiable=True)
    assert optimizer.backend == "reference"
    assert param.data_ptr() == address
    with pytest.raises(ValueError, match="differentiable=True needs backend='reference'"):
        OURS["adamw"]([param], differentiable=True, backend="cpu")
