"""release="backward" of parameters that FSDP2 has sharded: it reduces a gradient before it shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import normal
from checks import assert_same_bits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import stackelberg_fused as sf


@pytest.fixture(autouse=True)
def _one_process(small_batches: None, tmp_path: Any) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def _sharded() -> nn.Sequential:
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(40, 40) for _ in range(5)))
    mesh = init_device_mesh("cpu", (1,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def test_shards_are_updated_as_their_gradients_arrive() -> None:
    models = _sharded(), _sharded()
    ours = sf.StackelbergAdamW(models[0].parameters(), release="backward")
    ordinary = sf.StackelbergAdamW(models[1].parameters())
    for number in range(3):
        for model, optimizer in zip(models, (ours, ordinary), strict=True):
            with optimizer.accumulate():
                model(normal((4, 40), number)).square().sum().backward()
            model(normal((4, 40), -number)).square().sum().backward()
            if optimizer is ours:
                freed = [p.grad is None for p in model.parameters()]
                assert any(freed)
                assert not all(freed)
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_same_bits(p, q)
    assert ours.last_step.launches > 1
