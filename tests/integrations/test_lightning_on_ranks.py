"""Lightning in two processes, `strategy="ddp"`: ours beside torch's, and beside one process with the whole batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from beside_torch import assert_same_run, small_batches, small_net
from launched import launched
from ranks import Ranks, of_ranks
from small_lightning import ROLES, groups_of, mse, of, one_for_each, quiet_trainer, small_module
from tolerances import IN_TRAINERS
from torch import Tensor, nn

import stackelberg_fused as sf

pytestmark = [
    *of_ranks,
    pytest.mark.skipif(not importlib.util.find_spec("lightning"), reason="needs lightning"),
]
WORLD, BATCHES, ROWS = 2, 6, 6


def _batches() -> Any:
    """Each process gets its half of every batch."""
    rank, share = dist.get_rank(), ROWS // WORLD
    mine = slice(share * rank, share * (rank + 1))
    halves = [(inputs[mine], targets[mine]) for inputs, targets in small_batches(BATCHES, ROWS)]
    return torch.utils.data.DataLoader(halves, batch_size=None)


def _fitted(make: Any, alternating: bool, checkpoint: str | None = None, **more: Any) -> Any:
    module = small_module(make, alternating)
    trainer = quiet_trainer(strategy="ddp", devices=WORLD, use_distributed_sampler=False, **more)
    trainer.fit(module, _batches(), ckpt_path=checkpoint)
    assert trainer.world_size == WORLD
    assert isinstance(trainer.strategy, _ddp())
    return module, trainer


def _ddp() -> type:
    from lightning.pytorch.strategies import DDPStrategy

    return DDPStrategy


def _weights(net: nn.Module, optimizer: Any = None) -> list[Tensor]:
    """Copies of weights, and of averages if an optimizer has them."""
    params = list(net.parameters())
    averages = [optimizer.state[param]["ema"] for param in params] if optimizer else []
    return [tensor.detach().clone() for tensor in params + averages]


def _beside_torch(alternating: bool) -> list[Tensor]:
    with launched():
        ours, trainer = _fitted(of(sf.StackelbergAdamW, ema_decay=0.9), alternating)
        # Lightning counts each step of an alternating batch
        assert trainer.global_step == BATCHES * (1 + alternating)
        torchs, _ = _fitted(one_for_each if alternating else of(torch.optim.AdamW), alternating)
        for mine, other in zip(_weights(ours.net), _weights(torchs.net), strict=True):
            torch.testing.assert_close(mine, other, **IN_TRAINERS)
        return _weights(ours.net, trainer.optimizers[0])


def _alone(alternating: bool) -> list[Tensor]:
    net = small_net()
    optimizer = sf.StackelbergAdamW(groups_of(net), ema_decay=0.9)
    for inputs, targets in small_batches(BATCHES, ROWS):
        for role in ROLES if alternating else (None,):
            optimizer.zero_grad()
            mse(net(inputs), targets).backward()
            optimizer.step(role=role)
    return _weights(net, optimizer)


@pytest.mark.parametrize("alternating", [False, True])
def test_under_ddp_as_with_torchs_and_as_one_process(ranks: Ranks, alternating: bool) -> None:
    """In automatic optimization, and with alternating steps in manual optimization."""
    alone = _alone(alternating)
    first, second = ranks(WORLD, _beside_torch, alternating)
    for mine, others, expected in zip(first, second, alone, strict=True):
        assert torch.equal(mine, others)
        torch.testing.assert_close(mine, expected, **IN_TRAINERS)


def _resumed(folder: str) -> None:
    with launched():
        make = of(sf.StackelbergAdamW, ema_decay=0.9, weight_decay=0.1)
        whole, trainer = _fitted(make, True, max_epochs=2)
        _, first = _fitted(make, True)
        first.save_checkpoint(f"{folder}/first.ckpt")
        again, resumed = _fitted(make, True, f"{folder}/first.ckpt", max_epochs=2)
        assert resumed.global_step == trainer.global_step == 4 * BATCHES
        assert_same_run(again.net, resumed.optimizers[0], whole.net, trainer.optimizers[0])


def test_resumed_under_ddp(ranks: Ranks, tmp_path: Path) -> None:
    ranks(WORLD, _resumed, str(tmp_path))
