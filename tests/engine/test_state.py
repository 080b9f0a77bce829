"""State: torch's names and values, round trips to the bit, checkpoints that share no memory."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from cases import (
    OURS,
    TORCHS,
    Options,
    kernel_options,
    normal,
    step,
)
from checks import all_params, assert_same_bits, assert_same_optimizers
from tolerances import HOST_SCALAR, SEVERAL_STEPS
from torch import nn

import stackelberg_fused as sf

SIZES = [(3, 5), (7,), (), (0,), (4097,)]
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
ADAM = Options("adamw", {"lr": 0.1, "amsgrad": True})


def _params(seed: int = 0) -> list[nn.Parameter]:
    return [nn.Parameter(normal(shape, seed + i)) for i, shape in enumerate(SIZES)]


def _copies(optimizer: Any) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone()) for p in all_params(optimizer)]


def _through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _trained(options: Options, backend: str, steps: int = 3) -> Any:
    optimizer = options.ours(_params(), backend=backend)
    for seed in range(steps):
        step(optimizer, seed=seed)
    return optimizer


@BACKENDS
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_round_trip_through_a_file(options: Options, backend: str) -> None:
    ours = _trained(options, backend)
    saved = _through_a_file(ours.state_dict())
    again = options.ours(_copies(ours), backend=backend, lr=0.5)
    again.load_state_dict(saved)
    assert_same_optimizers(again, ours)
    for seed in range(3, 6):
        step(ours, again, seed=seed)
    assert_same_optimizers(again, ours)


@BACKENDS
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_torchs_dict_loads_here_and_ours_there(options: Options, backend: str) -> None:
    torchs = options.torchs(_params())
    for seed in range(3):
        step(torchs, seed=seed)
    ours = options.ours(_copies(torchs), backend=backend, lr=0.5)
    ours.load_state_dict(_through_a_file(torchs.state_dict()))
    assert_same_optimizers(ours, torchs)
    assert ours.param_groups[0]["lr"] == torchs.param_groups[0]["lr"]
    assert ours.param_groups[0]["role"] == "body"
    step(ours, torchs, seed=3)
    back = options.torchs(_copies(ours))
    back.load_state_dict(_through_a_file(ours.state_dict()))
    assert_same_optimizers(ours, back)
    step(ours, back, seed=4)
    for p, q in zip(all_params(ours), all_params(back), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)
        if backend == "reference":
            assert_same_bits(p, q)


def test_the_same_names_as_torch() -> None:
    for rule, settings in (("adam", {"amsgrad": True}), ("adamw", {}), ("sgd", {"momentum": 0.9})):
        options = Options(rule, settings)
        ours, torchs = options.ours(_params()), options.torchs(_params())
        step(ours, torchs)
        mine, theirs = ours.state_dict(), torchs.state_dict()
        assert mine["state"].keys() == theirs["state"].keys()
        for key, entry in theirs["state"].items():
            assert mine["state"][key].keys() - {"step"} == entry.keys() - {"step"}
        assert mine["param_groups"][0].keys() >= theirs["param_groups"][0].keys()


def test_loading_restores_rates_roles_and_rules() -> None:
    def build(p: list[nn.Parameter], **head: Any) -> Any:
        return sf.StackelbergAdamW(
            [{"params": p[:2]}, {"params": p[2:], "role": "head", **head}], lr=0.1
        )

    saved = build(_params(), rule="sgd", momentum=0.5, lr=3.0)
    step(saved)
    loaded = build(_copies(saved))
    loaded.load_state_dict(_through_a_file(saved.state_dict()))
    keys = ("lr", "role", "rule", "momentum")
    assert [[g.get(k) for k in keys] for g in loaded.param_groups] == [
        [g.get(k) for k in keys] for g in saved.param_groups
    ]
    step(saved, loaded, seed=1)
    assert_same_optimizers(loaded, saved)


@BACKENDS
def test_a_checkpoint_shares_no_memory(backend: str) -> None:
    ours = _trained(ADAM, backend)
    saved = copy.deepcopy(ours.state_dict())
    again = ADAM.ours(_copies(ours), backend=backend)
    for _ in range(2):  # into fresh memory, then into what is there
        again.load_state_dict(saved)
        step(again, seed=9)
        for key, entry in ours.state_dict()["state"].items():
            for name, value in entry.items():
                assert_same_bits(saved["state"][key][name], value, name)
    addresses = {v.data_ptr() for e in saved["state"].values() for v in e.values() if v.numel()}
    assert addresses.isdisjoint(v.data_ptr() for e in again.state.values() for v in e.values())


@BACKENDS
def test_going_back_to_a_checkpoint(backend: str) -> None:
    ours = _trained(ADAM, backend)
    saved, params = copy.deepcopy(ours.state_dict()), [p.detach().clone() for p in all_params(ours)]
    step(ours, seed=5)
    expected = [p.detach().clone() for p in all_params(ours)]
    step(ours, seed=6)
    ours.load_state_dict(saved)
    with torch.no_grad():
        for p, old in zip(all_params(ours), params, strict=True):
            p.copy_(old)
    step(ours, seed=5)
    for p, e in zip(all_params(ours), expected, strict=True):
        assert_same_bits(p, e)


@BACKENDS
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["deepcopy", "pickle"]
)
def test_copies_of_the_optimizer(copied: Any, backend: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = sf.split_body_head(model, "1")
    ours = sf.StackelbergAdamW(groups, lr=0.1, head_lr_ratio=4.0, backend=backend)
    step(ours)
    twin = copied(ours)
    assert twin.backend == backend
    assert twin.param_groups[1]["param_names"] == ["1.weight", "1.bias"]
    for seed in range(1, 4):
        step(ours, seed=seed)
    for seed in range(1, 4):
        step(twin, seed=seed)
    assert_same_optimizers(twin, ours)
    twin.add_param_group({"params": [("new", nn.Parameter(torch.ones(2)))], "role": "head"})
    assert twin.param_groups[2]["lr"] == pytest.approx(0.4, rel=HOST_SCALAR)


def test_model_and_optimizer_copied_together() -> None:
    model = nn.Linear(3, 2)
    ours = ADAM.ours(model.parameters())
    step(ours)
    model2, ours2 = copy.deepcopy((model, ours))
    assert all_params(ours2)[0] is model2.weight
    step(ours2, seed=1)
    assert ours.state[model.weight]["step"] == 1
    assert ours2.state[model2.weight]["step"] == 2


def test_sgd_from_an_old_torch_dict_with_empty_buffers() -> None:
    options = Options("sgd", {"momentum": 0.9, "dampening": 0.5})
    ours = options.ours(_params(), backend="cpu")
    saved = ours.state_dict()
    saved["state"] = {i: {"momentum_buffer": None} for i in range(len(SIZES))}
    ours.load_state_dict(saved)
    torchs = options.torchs(_copies(ours))
    for seed in range(3):
        step(ours, torchs, seed=seed)
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)


@pytest.mark.parametrize("rule", OURS)
def test_a_dict_from_before_the_first_step(rule: str) -> None:
    ours = OURS[rule](_params(), lr=0.3)
    ours.load_state_dict(TORCHS[rule](_params(), lr=0.7).state_dict())
    assert ours.param_groups[0]["lr"] == 0.7
    assert not ours.state
    step(ours)


def test_step_as_a_number_as_old_torch_saved_it() -> None:
    ours = _trained(ADAM, "cpu")
    saved = copy.deepcopy(ours.state_dict())
    for entry in saved["state"].values():
        entry["step"] = int(entry["step"])
    again = ADAM.ours(_copies(ours), backend="cpu")
    again.load_state_dict(saved)
    step(ours, again, seed=4)
    assert_same_optimizers(again, ours)


def test_another_layout_than_the_checkpoints() -> None:
    value = normal((4, 3, 8, 8), 1)
    plain, turned = (
        nn.Parameter(value.clone()),
        nn.Parameter(value.to(memory_format=torch.channels_last)),
    )
    ours, other = ADAM.ours([plain]), ADAM.ours([turned])
    step(ours, other)
    other.load_state_dict(_through_a_file(ours.state_dict()))
    assert other.state[turned]["exp_avg"].stride() == turned.stride()
    step(ours, other, seed=1)
    assert_same_optimizers(other, ours)


def test_saving_state_writes_each_arena_once() -> None:
    params = [nn.Parameter(torch.ones(16)) for _ in range(200)]
    ours = sf.StackelbergAdamW(params)
    step(ours)
    file, expected = io.BytesIO(), io.BytesIO()
    torch.save(ours.state_dict(), file)
    torchs = TORCHS["adamw"](params)
    step(torchs)
    torch.save(torchs.state_dict(), expected)
    assert file.tell() <= 1.05 * expected.tell()
