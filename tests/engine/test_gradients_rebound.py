"""Parameters, groups and state that somebody rebinds, replaces or edits between steps."""

from __future__ import annotations

import gc
from collections import defaultdict
from typing import Any

import pytest
import torch
from cases import (
    Options,
    normal,
    pair,
    step,
)
from checks import all_params, assert_same_bits, assert_same_optimizers
from tolerances import SEVERAL_STEPS
from torch import Tensor, nn

import stackelberg_fused as sf

ADAM = Options("adamw", {"lr": 0.1})
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def _conv() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3))


@BACKENDS
def test_rebound_data(backend: str) -> None:
    ours, plain = pair(ADAM, [5, 4097, ()], backend)
    for seed in range(4):
        for p in all_params(ours):
            p.data = p.data.clone()
        step(ours, plain, seed=seed)
    assert_same_optimizers(ours, plain)


@BACKENDS
def test_channels_last_after_construction(backend: str) -> None:
    model, twin = _conv(), _conv()
    ours = ADAM.ours(model.parameters(), backend=backend)
    plain = ADAM.ours(twin.parameters(), backend=backend)
    for number, layout in enumerate([None, torch.channels_last, None, torch.contiguous_format]):
        if layout:
            model.to(memory_format=layout)
        step(ours, plain, seed=number)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_same_bits(p, q)
        for name in ("exp_avg", "exp_avg_sq"):
            assert_same_bits(ours.state[p][name], plain.state[q][name])
            assert ours.state[p][name].stride() == p.stride()


@BACKENDS
def test_transposed_in_place(backend: str) -> None:
    """The address does not tell; the gradient's layout does."""
    ours, plain = pair(ADAM, [(4, 4)], backend)
    step(ours, plain)
    (p,), (q,) = all_params(ours), all_params(plain)
    with torch.no_grad():
        turned = torch.empty(4, 4).t()
        turned.copy_(p)
        p.untyped_storage().copy_(turned.untyped_storage())
    p.data = p.data.t()
    grad = normal((4, 4), 3)
    p.grad, q.grad = grad.t().contiguous().t(), grad.clone()
    ours.step()
    plain.step()
    assert_same_bits(p, q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_model_to_between_construction_and_the_firststep(dtype: torch.dtype) -> None:
    model = nn.Linear(3, 2)
    optimizer = ADAM.ours(model.parameters())
    assert optimizer.backend == "cpu"
    model.to(dtype)
    model(normal((4, 3), 1).to(dtype)).sum().backward()
    optimizer.step()
    assert optimizer.backend == ("cpu" if dtype is torch.bfloat16 else "reference")
    wide = torch.float32 if dtype is torch.bfloat16 else dtype
    assert optimizer.state[model.weight]["exp_avg"].dtype == wide
    assert optimizer.state[model.weight]["step"] == 1


@BACKENDS
def test_a_parameter_replaced_in_its_group(backend: str) -> None:
    """As Gaussian splatting does: other shape, state carried over by hand."""
    ours, plain = pair(ADAM, [6, 3], backend)
    step(ours, plain)
    for optimizer in (ours, plain):
        group = optimizer.param_groups[0]
        old = group["params"][0]
        state = optimizer.state.pop(old)
        new = nn.Parameter(torch.cat([old.detach(), torch.ones(4)]))
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.cat([state[name], torch.zeros(4)])
        group["params"][0] = new
        optimizer.state[new] = state
        del old
    gc.collect()
    for seed in range(2):
        step(ours, plain, seed=seed)
    assert_same_optimizers(ours, plain)
    assert [p.numel() for p in all_params(ours)] == [10, 3]
    assert [float(ours.state[p]["step"]) for p in all_params(ours)] == [3, 3]


def _clear(optimizer: Any, p: Tensor) -> None:
    optimizer.state.clear()


def _new_mapping(optimizer: Any, p: Tensor) -> None:
    optimizer.state = defaultdict(dict)


def _drop_entry(optimizer: Any, p: Tensor) -> None:
    del optimizer.state[p]


def _empty_entry(optimizer: Any, p: Tensor) -> None:
    optimizer.state[p] = {}


def _restart_moment(optimizer: Any, p: Tensor) -> None:
    optimizer.state[p]["exp_avg"] = torch.zeros_like(p)


def _moment_in_place(optimizer: Any, p: Tensor) -> None:
    optimizer.state[p]["exp_avg"].fill_(0.25)


def _restart_count(optimizer: Any, p: Tensor) -> None:
    optimizer.state[p]["step"] = torch.tensor(0.0)


def _count_in_place(optimizer: Any, p: Tensor) -> None:
    optimizer.state[p]["step"].fill_(7)


EDITS = [
    _clear,
    _new_mapping,
    _drop_entry,
    _empty_entry,
    _restart_moment,
    _moment_in_place,
    _restart_count,
    _count_in_place,
]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("edit", EDITS, ids=lambda f: f.__name__)
def test_state_edited_by_hand(edit: Any, backend: str) -> None:
    params = [[nn.Parameter(normal(n, n)) for n in (1, 50)] for _ in range(2)]
    ours = ADAM.ours(params[0], backend=backend)
    torchs = ADAM.torchs(params[1])
    for seed in range(6):
        step(ours, torchs, seed=seed)
        if seed in (1, 3):
            edit(ours, params[0][0])
            edit(torchs, params[1][0])
            gc.collect()
    if backend == "reference":
        assert_same_optimizers(ours, torchs)
    for p, q in zip(*params, strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)
        assert ours.state[p]["step"] == torchs.state[q]["step"]


@pytest.mark.parametrize("options", [ADAM, Options("sgd", {"momentum": 0.9, "lr": 0.1})], ids=str)
@BACKENDS
def test_state_moved_through_data(backend: str, options: Options) -> None:
    """As the usual snippet that carries an optimizer to a device does: same objects, other memory."""
    ours, plain = pair(options, [5, 4097, ()], backend)
    for seed in range(4):
        step(ours, plain, seed=seed)
        for entry in ours.state.values():
            for value in entry.values():
                value.data = value.data.clone()
    assert_same_optimizers(ours, plain)
    assert all(
        float(ours.state[p]["step"]) == 4 for p in all_params(ours) if "step" in ours.state[p]
    )


def test_state_of_another_dtype_is_taken_back() -> None:
    ours, plain = pair(ADAM, [6], "cpu")
    step(ours, plain)
    (p,) = all_params(ours)
    ours.state[p]["exp_avg"].data = ours.state[p]["exp_avg"].data.double()
    step(ours, plain, seed=1)
    assert ours.state[p]["exp_avg"].dtype == torch.float32
    assert_same_optimizers(ours, plain)


def test_foreign_entries_in_the_state_cost_no_rebuild() -> None:
    ours, _ = pair(ADAM, [5], "cpu")
    (p,) = all_params(ours)
    step(ours)
    engine = ours._engine
    for i in range(3):
        ours.state[p]["mine"] = torch.full((3,), float(i))
        ours.state["global"] = {"epoch": i}
        step(ours)
    assert ours._engine is engine
    assert ours.state[p]["step"] == 4
    assert ours.state_dict()["state"][0]["mine"].tolist() == [2.0] * 3


def test_building_the_tables_again_moves_nothing_again() -> None:
    first, late = torch.nn.Parameter(torch.randn(70)), torch.nn.Parameter(torch.randn(70))
    optimizer = sf.StackelbergAdamW([first])
    before = first.data_ptr()
    optimizer.add_param_group({"params": [late]})
    optimizer.load_state_dict(optimizer.state_dict())
    assert first.data_ptr() == before
