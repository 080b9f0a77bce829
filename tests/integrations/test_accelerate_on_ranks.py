"""Accelerate in two processes: ours beside torch's, and beside one process with the whole batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from beside_torch import assert_same_run, small_batches, small_net
from launched import launched
from ranks import Ranks, of_ranks
from tolerances import IN_TRAINERS
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import stackelberg_fused as sf

pytestmark = [
    *of_ranks,
    pytest.mark.skipif(not importlib.util.find_spec("accelerate"), reason="needs accelerate"),
]
WORLD, ROWS, ACCUMULATED, LIMIT = 2, 6, 2, 0.5
OURS = {"weight_decay": 0.1, "ema_decay": 0.9}
mse = nn.functional.mse_loss


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    rates = {"body": 1e-3, "head": 1e-2}
    return [{**g, "lr": rates[g["role"]]} for g in sf.split_body_head(model, head="2")]


def _optimizer(kind: str, model: nn.Module) -> Any:
    groups = _groups(model)
    if kind == "ours":
        return sf.StackelbergAdamW(groups, **OURS)
    if kind == "ours, which clips":
        return sf.StackelbergAdamW(groups, **OURS, max_grad_norm=LIMIT)
    return torch.optim.AdamW(groups, weight_decay=OURS["weight_decay"])


def _prepared(kind: str) -> tuple[Any, ...]:
    """An accelerator, and what it prepared: batches of 3 rows, of which each process gets every other one."""
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
    accelerate.utils.set_seed(0)
    assert accelerator.num_processes == WORLD
    model = small_net()
    inputs, targets = (torch.cat(part) for part in zip(*small_batches(), strict=True))
    batches = DataLoader(TensorDataset(inputs, targets), batch_size=ROWS // WORLD)
    return accelerator, *accelerator.prepare(model, _optimizer(kind, model), batches)


def _train(accelerator: Any, model: Any, optimizer: Any, batches: Any, clips: bool) -> None:
    for inputs, targets in batches:
        with accelerator.accumulate(model):
            accelerator.backward(mse(model(inputs), targets))
            if clips and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), LIMIT)
            optimizer.step()
            optimizer.zero_grad()


def _outcome(model: nn.Module, optimizer: Any) -> dict[str, list[Tensor]]:
    """Weights, and averages where there are any; copies, for the way to the test."""
    params = list(model.parameters())
    averages = [optimizer.state[p]["ema"] for p in params if "ema" in optimizer.state[p]]
    found = {"weights": params, "averages": averages}
    return {name: [t.detach().clone() for t in tensors] for name, tensors in found.items()}


def _on_a_rank(kind: str) -> dict[str, list[Tensor]]:
    with launched():
        accelerator, model, optimizer, batches = _prepared(kind)
        _train(accelerator, model, optimizer, batches, clips="clips" not in kind)
        assert isinstance(model, nn.parallel.DistributedDataParallel)
        return _outcome(model, optimizer)


def _alone() -> dict[str, list[Tensor]]:
    """One process, plain torch around our optimizer, all rows of each batch."""
    model = small_net()
    optimizer = _optimizer("ours", model)
    for number, (inputs, targets) in enumerate(small_batches(), 1):
        (mse(model(inputs), targets) / ACCUMULATED).backward()
        if number % ACCUMULATED == 0:
            nn.utils.clip_grad_norm_(model.parameters(), LIMIT)
            optimizer.step()
            optimizer.zero_grad()
    return _outcome(model, optimizer)


def test_as_with_torchs_and_as_one_process(ranks: Ranks) -> None:
    """Prepared, accumulated, clipped: by Accelerate, or by the optimizer."""
    alone = _alone()
    (torchs, _) = ranks(WORLD, _on_a_rank, "torchs")
    for kind in ("ours", "ours, which clips"):
        first, second = ranks(WORLD, _on_a_rank, kind)
        for name, tensors in alone.items():
            assert len(tensors) == 4
            for mine, others, expected in zip(first[name], second[name], tensors, strict=True):
                assert torch.equal(mine, others)
                torch.testing.assert_close(mine, expected, **IN_TRAINERS)
        for mine, expected in zip(first["weights"], torchs["weights"], strict=True):
            torch.testing.assert_close(mine, expected, **IN_TRAINERS)


def _saved_and_loaded(folder: str) -> None:
    with launched():
        accelerator, model, optimizer, batches = _prepared("ours")
        for _ in range(2):
            accelerator.save_state(folder)
            _train(accelerator, model, optimizer, batches, clips=True)
        accelerator.wait_for_everyone()
        accelerator.free_memory()
        again, *prepared = _prepared("ours")
        again.load_state(folder)
        _train(again, *prepared, clips=True)
        assert_same_run(prepared[0], prepared[1], model, optimizer)
        assert all("ema" in optimizer.state[p] for p in model.parameters())


def test_saved_and_loaded_on_ranks(ranks: Ranks, tmp_path: Path) -> None:
    ranks(WORLD, _saved_and_loaded, str(tmp_path))
