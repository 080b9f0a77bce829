"""torch.distributed.checkpoint on several ranks: saved on two, loaded on other meshes, continued to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import wrapped_models as models
from cases import gradient
from checks import assert_same_bits
from ranks import Ranks, of_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import stackelberg_fused as sf

pytestmark = of_ranks
BEFORE, AFTER = 3, 3  # steps
ADAMW, SGD = sf.StackelbergAdamW, sf.StackelbergSGD
NARROW = torch.bfloat16
MEAN = {"update_every": {"body": 2}, "update_every_grads": "mean"}

# by name: class, dtype of the parameters, settings
SCHEMES: dict[str, tuple[Any, torch.dtype, dict[str, Any]]] = {
    "float32": (ADAMW, torch.float32, {"amsgrad": True}),
    "average, turns": (ADAMW, torch.float32, {"ema_decay": 0.9, **MEAN}),
    "momentum": (SGD, torch.float32, {"momentum": 0.9}),
    "nearest": (ADAMW, NARROW, {}),
    "split16": (ADAMW, NARROW, {"master": "split16", "ema_decay": 0.9}),
    "split8": (ADAMW, NARROW, {"master": "split8"}),
    "kahan": (ADAMW, NARROW, {"master": "kahan"}),
    "float32 master": (ADAMW, NARROW, {"master": "fp32"}),
    "momentum, split16": (SGD, NARROW, {"momentum": 0.9, "master": "split16"}),
    "bfloat16 state": (ADAMW, torch.float32, {"state_dtype": "bfloat16"}),
    "stochastic": (ADAMW, NARROW, {"master": "stochastic", "state_dtype": "bfloat16"}),
    "8 bits": (ADAMW, torch.float32, {"state_dtype": "8bit", "amsgrad": True}),
    "split8, 8 bits": (ADAMW, NARROW, {"master": "split8", "state_dtype": "8bit", **MEAN}),
    "stochastic, 8 bits": (ADAMW, NARROW, {"master": "stochastic", "state_dtype": "8bit"}),
    "momentum of 8 bits": (SGD, NARROW, {"momentum": 0.9, "state_dtype": "8bit"}),
}
MESHES = [("none", 1), ("FSDP2", 1), ("FSDP2", 3), ("HSDP", 4)]
MESHES += [("TP + FSDP2", 4)] if models.LOADS_STRIDED else []


def _build(wrapper: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 4)
    ).to(dtype)
    return models.WRAPPERS[wrapper](model)


def _ours(model: nn.Module, scheme: str) -> Any:
    kind, _, settings = SCHEMES[scheme]
    return kind(models.groups_of(model), backend="cpu", **settings)


def _step(model: nn.Module, optimizer: Any, steps: range) -> None:
    """Steps with the same gradients, however the model is sharded."""
    from torch.distributed.tensor import distribute_tensor

    for number in steps:
        for i, param in enumerate(model.parameters()):
            grad = gradient(tuple(param.shape), 100 * number + i).to(param.dtype)
            if hasattr(param, "placements"):
                # each rank cuts its part out of what all have
                mesh, placements = param.device_mesh, param.placements
                grad = distribute_tensor(grad, mesh, placements, src_data_rank=None)
            param.grad = grad
        optimizer.step()


def _whole(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """All parameters and their state by name."""
    found = {}
    for name, param in model.named_parameters():
        found[name] = models.whole(param.detach()).clone()
        for key, value in optimizer.state[param].items():
            found[f"{name}: {key}"] = models.whole(torch.as_tensor(value)).detach().clone()
    return found


def _compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys(), (sorted(found), sorted(expected))
    for name, value in found.items():
        assert_same_bits(value, expected[name], name)


def _save(scheme: str, path: str) -> dict[str, Tensor]:
    model = _build("FSDP2", SCHEMES[scheme][1])
    ours = _ours(model, scheme)
    _step(model, ours, range(BEFORE))
    saved = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, ours),
    }
    dcp.save(saved, checkpoint_id=path)
    return _whole(model, ours)


def _load(model: nn.Module, optimizer: Any, path: str) -> None:
    found = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    # what a checkpoint of torch's own optimizer lacks
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(found, checkpoint_id=path, planner=planner)
    set_model_state_dict(model, found["model"])
    set_optimizer_state_dict(model, optimizer, found["optimizer"])


def _resume(wrapper: str, scheme: str, path: str, saved: dict[str, Tensor]) -> None:
    dtype = SCHEMES[scheme][1]
    model = _build(wrapper, dtype)
    for param in model.parameters():
        param.detach().zero_()
    again = _ours(model, scheme)
    _load(model, again, path)
    _compare(_whole(model, again), saved)
    _step(model, again, range(BEFORE, BEFORE + AFTER))
    alone = _build("none", dtype)
    whole = _ours(alone, scheme)
    _step(alone, whole, range(BEFORE + AFTER))
    _compare(_whole(model, again), _whole(alone, whole))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_saved_on_two_ranks_and_resumed_on_others(
    ranks: Ranks, tmp_path: Path, scheme: str
) -> None:
    saved, _ = ranks(2, _save, scheme, str(tmp_path))
    for wrapper, world in MESHES:
        # its second layer is cut into three columns, within a block of codes
        if wrapper != "TP + FSDP2" or "8 bits" not in scheme:
            ranks(world, _resume, wrapper, scheme, str(tmp_path), saved)


def _torchs(model: nn.Module) -> Any:
    groups = [
        {"params": [p for _, p in g["params"]], "lr": g["lr"]} for g in models.groups_of(model)
    ]
    return torch.optim.AdamW(groups, weight_decay=0.1)


def _save_with(of_torch: bool, path: str) -> dict[str, Tensor]:
    model = _build("FSDP2", torch.float32)
    optimizer = _torchs(model) if of_torch else ADAMW(models.groups_of(model), weight_decay=0.1)
    _step(model, optimizer, range(BEFORE))
    saved = {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }
    dcp.save(saved, checkpoint_id=path)
    return _whole(model, optimizer)


def _load_the_other(of_torch: bool, path: str, saved: dict[str, Tensor]) -> None:
    model, twin = _build("FSDP2", torch.float32), _build("none", torch.float32)
    settings = {"weight_decay": 0.1, "backend": "reference"}
    ours, theirs = ADAMW(models.groups_of(model), **settings), _torchs(model)
    loaded = ours if of_torch else theirs
    for group in loaded.param_groups:
        group["lr"] = 0.5  # the checkpoint's rates count
    _load(model, loaded, path)
    _compare(_whole(model, loaded), saved)
    assert [group["lr"] for group in loaded.param_groups] == [0.01, 0.1]
    _step(model, loaded, range(BEFORE, BEFORE + AFTER))
    alone = _torchs(twin)
    _step(twin, alone, range(BEFORE + AFTER))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(models.whole(p.detach()), q.detach())


@pytest.mark.parametrize("of_torch", [True, False], ids=["from torch's", "into torch's"])
def test_torchs_adamw_and_ours_load_each_other(
    ranks: Ranks, tmp_path: Path, of_torch: bool
) -> None:
    saved, _ = ranks(2, _save_with, of_torch, str(tmp_path))
    for world in (1, 3):
        ranks(world, _load_the_other, of_torch, str(tmp_path), saved)


def _gather(scheme: str) -> Any:
    """Whole state dicts, on the first rank alone."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    model = _build("FSDP2", SCHEMES[scheme][1])
    ours = _ours(model, scheme)
    _step(model, ours, range(BEFORE))
    gathered = (
        get_model_state_dict(model, options=options),
        get_optimizer_state_dict(model, ours, options=options),
    )
    return gathered, _whole(model, ours)


def _scatter(scheme: str, gathered: Any, saved: dict[str, Tensor]) -> None:
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    model = _build("FSDP2", SCHEMES[scheme][1])
    again = _ours(model, scheme)
    of_model, of_optimizer = gathered if torch.distributed.get_rank() == 0 else ({}, {})
    set_model_state_dict(model, of_model, options=options)
    set_optimizer_state_dict(model, again, of_optimizer, options=options)
    _compare(_whole(model, again), saved)


# no collective knows the 16-bit integers of split16
@pytest.mark.parametrize("scheme", [n for n in SCHEMES if "split16" not in n])
def test_whole_state_dicts_are_gathered_and_dealt_out(ranks: Ranks, scheme: str) -> None:
    (gathered, saved), _ = ranks(2, _gather, scheme)
    ranks(3, _scatter, scheme, gathered, saved)
