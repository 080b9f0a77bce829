"""Launch units: late and frozen parameters, several optimizers, roles, launches, versions."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from cases import (
    Options,
    gradient,
    normal,
    pair,
    set_gradients,
    step,
)
from checks import (
    Snapshot,
    all_params,
    assert_same_bits,
    assert_same_optimizers,
)
from tolerances import SEVERAL_STEPS
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends import Launch
from stackelberg_fused.backends.cpu import CpuBackend

ADAM = Options("adamw", {"lr": 0.1})
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


@BACKENDS
def test_frozen_parameters_that_show_a_gradient_later(backend: str) -> None:
    """LoRA: neither moved nor given state, until they are trained."""
    base, adapter = nn.Linear(100, 100), nn.Linear(100, 2)
    base.requires_grad_(False)
    addresses = [p.data_ptr() for p in base.parameters()]
    optimizer = ADAM.ours([*base.parameters(), *adapter.parameters()], backend=backend)
    assert [p.data_ptr() for p in base.parameters()] == addresses
    adapter(base(normal((4, 100), 1))).sum().backward()
    optimizer.step()
    moments = sum(
        v.numel() * 4 for s in optimizer.state.values() for n, v in s.items() if n != "step"
    )
    assert moments == 8 * sum(p.numel() for p in adapter.parameters())

    base.requires_grad_(True)
    expected = [p.detach().clone() for p in base.parameters()]
    optimizer.step()  # no gradient yet
    assert [p.data_ptr() for p in base.parameters()] == addresses
    adapter(base(normal((4, 100), 1))).sum().backward()
    torchs = torch.optim.AdamW([nn.Parameter(e) for e in expected], lr=0.1)
    for p, q in zip(base.parameters(), all_params(torchs), strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    torchs.step()
    assert [p.data_ptr() == a for p, a in zip(base.parameters(), addresses, strict=True)] == [
        False,
        False,
    ]
    for p, q in zip(base.parameters(), all_params(torchs), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)
        assert optimizer.state[p]["step"] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.complex64], ids=str)
def test_a_frozen_base_in_another_dtype_needs_no_backend(dtype: torch.dtype) -> None:
    base = nn.Parameter(torch.zeros(4, dtype=dtype), requires_grad=False)
    trained = nn.Parameter(normal(4, 1))
    optimizer = ADAM.ours(
        [{"params": [base]}, {"params": [trained], "role": "head"}], backend="cpu"
    )
    assert optimizer.backend == "cpu"
    trained.grad = torch.ones(4)
    optimizer.step()
    assert optimizer.launches == 1


def test_a_frozen_base_in_another_dtype_that_is_trained_after_all() -> None:
    def build(backend: str) -> Any:
        base = nn.Parameter(normal(4, 2).double(), requires_grad=False)
        return ADAM.ours([("base", base), ("w", nn.Parameter(normal(4, 1)))], backend=backend)

    optimizer = build("auto")
    step(optimizer, seed=1)  # gives the frozen one a gradient too
    assert optimizer.backend == "reference+cpu"
    assert [float(optimizer.state[p]["step"]) for p in all_params(optimizer)] == [1, 1]

    refused = build("cpu")
    before = Snapshot(refused)
    with pytest.raises(
        ValueError, match=r"'base' of .*: the cpu backend updates parameters of at most 32"
    ):
        step(refused, seed=1)
    before.assert_unchanged()


@BACKENDS
def test_add_param_group_between_steps(backend: str) -> None:
    ours, plain = pair(ADAM, [5, 4097], backend)
    step(ours, plain)
    for optimizer in (ours, plain):
        optimizer.add_param_group(
            {"params": [nn.Parameter(normal(70, 9))], "lr": 0.5, "role": "head"}
        )
    for seed in range(3):
        step(ours, plain, seed=seed)
    assert_same_optimizers(ours, plain)
    assert [float(ours.state[p]["step"]) for p in all_params(ours)] == [4, 4, 3]


@BACKENDS
def test_second_optimizer_over_parameters_that_a_first_has_moved(backend: str) -> None:
    ours, plain = pair(ADAM, [5, 130], backend)
    more = [
        Options("sgd", {"lr": 0.1, "momentum": 0.9}).ours(all_params(o), backend=backend)
        for o in (ours, plain)
    ]
    for seed in range(3):
        step(ours, plain, seed=seed)
        step(*more, seed=seed + 10)
    assert_same_optimizers(ours, plain)
    assert_same_optimizers(*more)


def test_changing_sides() -> None:
    body, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = sf.StackelbergSGD([{"params": [body]}, {"params": [other]}], lr=1.0, backend="cpu")
    step(optimizer)
    optimizer.param_groups[0]["role"] = "head"
    before = other.detach().clone()
    step(optimizer, role="head")
    assert_same_bits(other, before)
    assert optimizer.state[body]["step"] == 2
    step(optimizer, role="body")
    assert optimizer.state[other]["step"] == 2


def test_a_changed_head_makes_an_older_backward_raise() -> None:
    """A raw write is invisible to autograd, unless it is told."""
    body, head = nn.Linear(3, 4), nn.Linear(4, 1)
    groups = [
        {"params": list(body.parameters())},
        {"params": list(head.parameters()), "role": "head"},
    ]
    optimizer = sf.StackelbergAdamW(groups, lr=0.1, backend="cpu")
    head(body(normal((2, 3), 1)).detach()).sum().backward()
    loss = head(body(normal((2, 3), 2))).sum()
    versions = [p._version for p in body.parameters()]
    optimizer.step(role="head")
    assert [p._version for p in body.parameters()] == versions
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_one_launch_for_any_number_of_groups_and_rules() -> None:
    rules: list[dict[str, Any]] = [
        {},
        {"rule": "sgd"},
        {"rule": "adam", "amsgrad": True},
        {"rule": "sgd", "momentum": 0.9},
    ]
    groups = [{"params": [nn.Parameter(normal(7, i))], **rules[i % 4]} for i in range(465)]
    optimizer = sf.StackelbergAdamW(groups, backend="cpu")
    for number in range(1, 4):
        step(optimizer, seed=number)
        assert optimizer.launches == number


def test_a_default_device_changes_nothing() -> None:
    param = nn.Parameter(normal(5, 1))
    param.grad = gradient(5, 1).clone()
    with torch.device("meta"):
        optimizer = ADAM.ours([param], backend="cpu")
        optimizer.step()
    assert optimizer.state[param]["step"] == 1


def test_what_stays_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stackelberg_fused")
    sf.StackelbergAdamW([("w", nn.Parameter(torch.ones(4, 4)[:, ::2]))])
    assert "parameter 'w' of param group 0 (body) stays where it is" in caplog.text


def test_records_never_change_without_a_new_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device backend uploads them only then."""
    seen: dict[int, bytes] = {}

    def launched(backend: Any, launch: Launch) -> int:
        records = launch.table.records.tobytes()
        assert seen.setdefault(launch.table.version, records) == records
        return update(backend, launch)

    update = CpuBackend.step
    monkeypatch.setattr(CpuBackend, "step", launched)
    params = [nn.Parameter(normal(5, i)) for i in range(4)]
    groups = [{"params": params[:2]}, {"params": params[2:], "role": "head"}]
    optimizer = sf.StackelbergAdamW(groups, lr=0.1, backend="cpu")
    set_gradients(groups, 1)  # the same tensors at every step: no new addresses
    for role in (None, "head", None, "body"):
        optimizer.step(role=role)
    assert len(seen) == 1
    optimizer.state[params[2]]["step"].fill_(7)  # the head's parameters need a row each now
    optimizer.step()
    assert len(seen) == 2
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step()
    assert len(seen) == 3
