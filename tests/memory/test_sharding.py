"""Distributed wrappers in one process: DDP's buckets, DTensor parameters, FSDP."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import TORCHS, Options, normal
from checks import Snapshot, assert_same_bits, assert_same_optimizers
from needs import needs_gloo
from torch import nn

dist = torch.distributed
pytestmark = needs_gloo
ADAM = Options("adamw", {"lr": 0.1, "amsgrad": True})


@pytest.fixture(scope="module")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def mesh(gloo: None) -> Any:
    return dist.device_mesh.init_device_mesh("cpu", (1,))


def _model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


def _train(model: nn.Module, optimizer: Any, steps: int = 3) -> None:
    for step in range(steps):
        model(normal((4, 5), step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("bucket_view", [True, False])
@pytest.mark.parametrize("optimizer_first", [True, False])
def test_ddp(gloo: None, bucket_view: bool, optimizer_first: bool) -> None:
    model, twin = _model(), _model()
    optimizer = ADAM.ours(model.parameters(), backend="cpu") if optimizer_first else None
    wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=bucket_view)
    optimizer = optimizer or ADAM.ours(model.parameters(), backend="cpu")
    plain = ADAM.ours(twin.parameters(), backend="cpu")
    _train(wrapped, optimizer)
    _train(twin, plain)
    assert_same_optimizers(optimizer, plain)
    assert optimizer.launches == 3


def _distributed(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.tensor import Shard, distribute_tensor

    for module in model.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            sharded = distribute_tensor(param.detach(), mesh, [Shard(0)])
            module.register_parameter(name, nn.Parameter(sharded))
    return model


def _like(value: torch.Tensor, param: Any) -> torch.Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, param.device_mesh, param.placements)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_dtensor(mesh: Any, backend: str) -> None:
    from torch.distributed.tensor import DTensor

    model, twin = _distributed(_model(), mesh), _model()
    optimizer = ADAM.ours(model.parameters(), backend=backend)
    plain = ADAM.ours(twin.parameters(), backend=backend)
    for step in range(3):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.grad = normal(tuple(q.shape), step)
            p.grad = _like(q.grad, p)
        optimizer.step()
        plain.step()
    assert_same_optimizers(optimizer, plain)
    state = optimizer.state[next(model.parameters())]
    assert isinstance(state["exp_avg"], DTensor)
    assert state["exp_avg"].placements == next(model.parameters()).placements

    saved = io.BytesIO()
    torch.save(copy.deepcopy(optimizer.state_dict()), saved)
    saved.seek(0)
    other = _distributed(_model(), mesh)
    loaded = ADAM.ours(other.parameters(), backend=backend)
    loaded.load_state_dict(torch.load(saved, weights_only=False))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert_same_bits(loaded.state[q][name], optimizer.state[p][name])


def test_a_gradient_that_is_still_to_be_summed_up(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Partial

    model = _distributed(_model(), mesh)
    optimizer = ADAM.ours(model.named_parameters(), backend="cpu")
    for p in model.parameters():
        p.grad = _like(normal(tuple(p.shape), 1), p)
    optimizer.step()
    before = Snapshot(optimizer)
    model[0].weight.grad = DTensor.from_local(normal((7, 5), 1), mesh, [Partial()])
    with pytest.raises(ValueError, match=r"'0\.weight' of param group 0 .*summed over ranks"):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_gradient_that_is_still_on_its_way(mesh: Any, backend: str) -> None:
    """Collectives of torch may bring a tensor later; whoever reads it waits."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce
    from torch.distributed.tensor import DTensor

    model, twin = _distributed(_model(), mesh), _model()
    optimizer = ADAM.ours(model.parameters(), backend=backend)
    plain = ADAM.ours(twin.parameters(), backend=backend)
    for step in range(2):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            q.grad = normal(tuple(q.shape), step)
            coming = all_reduce(q.grad, "sum", mesh)
            assert isinstance(coming, AsyncCollectiveTensor)
            p.grad = DTensor(coming, p._spec, requires_grad=False)
        optimizer.step()
        plain.step()
    assert_same_optimizers(optimizer, plain)


def test_dtensor_gradients_that_do_not_fit(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    model = _distributed(_model(), mesh)
    optimizer = ADAM.ours(model.named_parameters(), backend="cpu")
    weight = model[0].weight
    for p in model.parameters():
        p.grad = _like(normal(tuple(p.shape), 1), p)
    optimizer.step()
    before = Snapshot(optimizer)
    weight.grad = distribute_tensor(normal((7, 5), 1), mesh, [Replicate()])
    with pytest.raises(ValueError, match=r"'0\.weight' of param group 0 .*placements"):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.parametrize("sharded", ["parameter", "gradient"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_dtensor_on_one_side_only(mesh: Any, sharded: str, backend: str) -> None:
    from torch.distributed.tensor import Replicate, distribute_tensor

    def place(value: torch.Tensor, side: str) -> torch.Tensor:
        return distribute_tensor(value, mesh, [Replicate()]) if sharded == side else value

    param = nn.Parameter(place(normal(6, 1), "parameter"))
    optimizer = ADAM.ours([("weight", param)], backend=backend)
    before = Snapshot(optimizer)
    param.grad = place(normal(6, 2), "gradient")
    with pytest.raises(TypeError, match=r"'weight' of param group 0 .*DTensor"):
        optimizer.step()
    before.assert_unchanged()


def test_a_shard_that_moves_is_followed(mesh: Any) -> None:
    model, twin = _distributed(_model(), mesh), _model()
    optimizer = ADAM.ours(model.parameters(), backend="cpu")
    plain = ADAM.ours(twin.parameters(), backend="cpu")
    for step in range(3):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p._local_tensor = p._local_tensor.clone()
            q.grad = normal(tuple(q.shape), step)
            p.grad = _like(q.grad, p)
        optimizer.step()
        plain.step()
    assert_same_optimizers(optimizer, plain)


def test_fsdp(mesh: Any, tmp_path: Path) -> None:
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    model, twin = _model(), _model()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    optimizer = ADAM.ours(model.parameters(), backend="cpu")
    plain = ADAM.ours(twin.parameters(), backend="cpu")
    _train(model, optimizer)
    _train(twin, plain)
    assert_same_optimizers(optimizer, plain)
    assert optimizer.launches == 3

    saved = get_optimizer_state_dict(model, optimizer)
    fresh = ADAM.ours(model.parameters(), backend="cpu")
    set_optimizer_state_dict(model, fresh, saved)
    assert_same_optimizers(fresh, optimizer)


def test_distributed_checkpoint_of_a_plain_model() -> None:
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model = _model()
    optimizer = ADAM.ours(model.parameters())
    _train(model, optimizer)
    saved = get_optimizer_state_dict(model, optimizer)
    for cls in (type(optimizer), TORCHS["adamw"]):
        fresh = cls(model.parameters(), lr=0.5, amsgrad=True)
        set_optimizer_state_dict(model, fresh, saved)
        assert_same_optimizers(fresh, optimizer)
        assert fresh.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("found", ["whole", "other rows"])
def test_state_of_another_part(mesh: Any, found: str) -> None:
    """A shard of 2 rows of 4, as the first of two processes has it; the state dict has all of them, or three."""
    from torch.distributed.tensor import DTensor, Shard

    def shard(rows: int, seed: int) -> Any:
        local = normal((rows, 3), seed)
        return DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=torch.Size([4, 3]), stride=(3, 1)
        )

    param = nn.Parameter(shard(2, 0))
    optimizer = ADAM.ours([("layer.weight", param)], backend="cpu")
    param.grad = shard(2, 1)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["exp_avg"].to_local().fill_(9.0)
    other = normal((4, 3), 2) if found == "whole" else shard(3, 2)
    saved["state"][0]["exp_avg_sq"] = other
    held = {n: v.to_local().clone() for n, v in optimizer.state[param].items() if v.dim()}
    with pytest.raises(ValueError, match=r"'layer.weight'.*exp_avg_sq.*set_optimizer_state_dict"):
        optimizer.load_state_dict(saved)
    for name, value in held.items():
        assert_same_bits(optimizer.state[param][name].to_local(), value)
    optimizer.step()


def test_zero_redundancy_optimizer(gloo: None) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, twin = _model(), _model()
    settings = {"lr": 0.1, "amsgrad": True}
    sharded = ZeroRedundancyOptimizer(
        model.parameters(), type(ADAM.ours([nn.Parameter(torch.ones(1))])), **settings
    )
    plain = ADAM.ours(twin.parameters())
    _train(model, sharded)
    _train(twin, plain)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_same_bits(p, q)
