"""Drop-in behaviour: whatever a script does with torch.optim, it can do here, with the same result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    OURS,
    TORCHS,
    Options,
    both,
    kernel_options,
    normal,
    set_gradients,
    step,
)
from checks import (
    all_params,
    assert_agree,
    assert_same_bits,
    assert_same_optimizers,
)
from tolerances import SEVERAL_STEPS
from torch import nn

import stackelberg_fused as sf

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})


@BACKENDS
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_same_as_torch(options: Options, backend: str) -> None:
    ours, torchs = both(options, backend)
    for seed in range(10):
        step(ours, torchs, seed=seed)
    assert_agree(ours, torchs)


@pytest.mark.parametrize("rule", OURS)
def test_positional_arguments(rule: str) -> None:
    arguments = {
        "adam": (0.1, (0.5, 0.9), 1e-3, 0.2, True),
        "adamw": (0.1, (0.5, 0.9), 1e-3, 0.2, True),
    }
    values = arguments.get(rule, (0.1, 0.9, 0.0, 0.2, True))
    p, q = (nn.Parameter(normal(9, 1)) for _ in range(2))
    ours, torchs = OURS[rule]([p], *values, backend="reference"), TORCHS[rule]([q], *values)
    for seed in range(3):
        step(ours, torchs, seed=seed)
    assert_same_bits(p, q)


@BACKENDS
def test_closure(backend: str) -> None:
    ours, torchs = both(ADAM, backend)
    losses = []
    for optimizer in (ours, torchs):

        def closure(optimizer: Any = optimizer) -> torch.Tensor:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sum((p**2).sum() for p in all_params(optimizer))
            loss.backward()
            return loss

        with torch.no_grad():
            losses.append(torch.stack([optimizer.step(closure) for _ in range(5)]).detach())
    torch.testing.assert_close(*losses, **SEVERAL_STEPS)
    assert losses[0][-1] < losses[0][0]
    assert_agree(ours, torchs)


def test_a_closure_that_raises_changes_nothing() -> None:
    ours, _ = both(ADAM, "cpu")
    step(ours)
    before = [p.detach().clone() for p in all_params(ours)]

    def closure() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ours.step(closure)
    for p, b in zip(all_params(ours), before, strict=True):
        assert_same_bits(p, b)


@BACKENDS
def test_roles(backend: str) -> None:
    """Stepping one player leaves the other as it is, to the bit, and counts its own steps."""
    sides = [[nn.Parameter(normal(n, n)) for n in (5, 4097)] for _ in range(2)]
    groups = [
        {"params": [sides[0][0]], "lr": 0.1},
        {"params": [sides[0][1]], "lr": 0.2, "role": "head"},
    ]
    optimizer = sf.StackelbergAdamW(groups, backend=backend)
    alone = [torch.optim.AdamW([p], lr) for p, lr in zip(sides[1], (0.1, 0.2), strict=True)]
    for seed, role in enumerate(["head", "head", "body", None, "head", "body", None]):
        set_gradients(optimizer.param_groups, seed)
        for number, (p, q) in enumerate(zip(*sides, strict=True)):
            q.grad = p.grad.clone()
            if role in (None, ("body", "head")[number]):
                alone[number].step()
        optimizer.step(role=role)
        for p, q in zip(*sides, strict=True):
            torch.testing.assert_close(p, q, **SEVERAL_STEPS)
    assert [float(optimizer.state[p]["step"]) for p in sides[0]] == [4, 5]
    assert optimizer.launches == (7 if backend == "cpu" else 0)


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(to_none: bool) -> None:
    ours, torchs = both(ADAM)
    step(ours, torchs)
    for optimizer in (ours, torchs):
        optimizer.zero_grad(set_to_none=to_none)
        optimizer.step()
    assert all((p.grad is None) == to_none for p in all_params(ours))
    assert_agree(ours, torchs)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("overflow", [False, True])
@BACKENDS
def test_grad_scaler(overflow: bool, backend: str, fused: bool | None) -> None:
    _, torchs = both(ADAM)
    ours, _ = both(ADAM, backend, fused=fused)
    for optimizer in (ours, torchs):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for number in range(3):
            optimizer.zero_grad()
            scaler.scale(sum((p**2).sum() for p in all_params(optimizer))).backward()
            if overflow and number == 1:
                all_params(optimizer)[0].grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == (512.0 if overflow else 1024.0)
    assert ours.state[all_params(ours)[0]]["step"] == (2 if overflow else 3)
    assert_agree(ours, torchs)


def test_compiled_training_step() -> None:
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [ADAM.ours(m.parameters(), backend="cpu") for m in models]

    def train(model: nn.Module, optimizer: Any, x: torch.Tensor) -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    compiled = torch.compile(train, backend="eager")
    for seed in range(4):
        compiled(models[0], optimizers[0], normal((4, 3), seed))
        train(models[1], optimizers[1], normal((4, 3), seed))
    assert_same_optimizers(*optimizers)
    assert optimizers[0].launches == 4


def test_repr_shows_groups() -> None:
    ours, _ = both(ADAM)
    assert "StackelbergAdamW" in repr(ours)
    assert "role: body" in repr(ours)
