"""Alternating steps on two ranks equal one process with the whole batch; unreduced gradients are refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import Ranks, of_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel as Ddp
from wrapped_models import needs_averages

import stackelberg_fused as sf

pytestmark = of_ranks
WORLD, ROWS = 2, 8
# head_steps, microbatches, with a scaler
KINDS = [(1, 1, False), (2, 1, False), (1, 3, False), (2, 2, True)]


def _players() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, 3)


def _optimizer_of(body: nn.Module, head: nn.Module) -> Any:
    groups = [
        {"params": list(body.parameters())},
        {"params": list(head.parameters()), "role": "head"},
    ]
    return sf.StackelbergSGD(groups, lr=0.05, momentum=0.9)


def _train(
    body: Any, head: Any, kind: tuple[int, int, bool], rows: slice, optimizer: Any
) -> list[torch.Tensor]:
    head_steps, microbatches, scaled = kind
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    batches = torch.Generator().manual_seed(1)
    for _ in range(4):
        inputs = torch.randn(WORLD * ROWS, 5, generator=batches)[rows]
        targets = torch.randn(WORLD * ROWS, 3, generator=batches)[rows]
        sf.alternating_step(
            body,
            head,
            F.mse_loss,
            optimizer,
            inputs,
            targets,
            head_steps,
            scaler=scaler,
            microbatches=microbatches,
        )
    return _weights(optimizer)


def _weights(optimizer: Any) -> list[torch.Tensor]:
    params = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    return [p.full_tensor() if hasattr(p, "full_tensor") else p.clone() for p in params]


def _each_in_ddp(body: nn.Module, head: nn.Module) -> tuple[nn.Module, nn.Module]:
    return Ddp(body), Ddp(head)


def _each_sharded(body: nn.Module, head: nn.Module, **how: Any) -> tuple[nn.Module, nn.Module]:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (WORLD,))
    for part in (body[0], body[2], body, head):
        fully_shard(part, mesh=mesh, **how)
    return body, head


def _parts_of_a_sharded_model(body: nn.Module, head: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A whole model is the root, and players are parts of it."""
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(*_each_sharded(body, head))
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (WORLD,)))
    return body, head


WRAPPERS = {
    "DDP": _each_in_ddp,
    "FSDP2": _each_sharded,
    "FSDP2, gathered until the backward": partial(_each_sharded, reshard_after_forward=False),
    "parts in FSDP2": _parts_of_a_sharded_model,
}


def _is_as_one_process(wrapper: str, kind: Any) -> None:
    body, head = _players()
    expected = _train(body, head, kind, slice(None), _optimizer_of(body, head))
    body, head = WRAPPERS[wrapper](*_players())
    optimizer = _optimizer_of(body, head)
    rank = dist.get_rank()
    found = _train(body, head, kind, slice(rank * ROWS, (rank + 1) * ROWS), optimizer)
    for ours, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, whole)
        every = [torch.empty_like(ours) for _ in range(WORLD)]
        dist.all_gather(every, ours)
        assert torch.equal(every[0], every[1]), "the processes went apart"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]} steps, {kind[1]} parts")
@pytest.mark.parametrize(
    "wrapper",
    [pytest.param(n, marks=[needs_averages] if "FSDP2" in n else []) for n in WRAPPERS],
)
def test_two_ranks_are_as_one_process(ranks: Ranks, wrapper: str, kind: Any) -> None:
    ranks(WORLD, _is_as_one_process, wrapper, kind)


def _is_refused(body: Any, head: Any, optimizer: Any) -> bool:
    said = ""
    try:
        _train(body, head, KINDS[0], slice(0, 1), optimizer)
    except RuntimeError as error:
        said = str(error)
    return "DistributedDataParallel" in said


def _refuses_unreduced_gradients() -> None:
    body, head = _players()
    optimizer = _optimizer_of(body, head)
    before = _weights(optimizer)
    whole = Ddp(nn.Sequential(body, head))
    assert _is_refused(body, head, optimizer), "both are bare"
    assert _is_refused(Ddp(body), head, optimizer), "the head is bare"
    assert _is_refused(lambda x: body(x), lambda x: head(x), optimizer), "what is not seen is bare"
    assert all(map(torch.equal, _weights(optimizer), before))
    del whole
    assert not _is_refused(body, head, optimizer), "nobody wraps it any more"


def test_gradients_that_nobody_reduces_are_refused(ranks: Ranks) -> None:
    ranks(WORLD, _refuses_unreduced_gradients)


def _whole_model_alternates() -> None:
    """`mode="alternating"` evaluates the whole model, which FSDP2 shards as one, for each player's gradient."""
    from torch.distributed.fsdp import fully_shard

    found = []
    for sharded in (False, True):
        body, head = _players()
        model = nn.Sequential(body, head)
        if sharded:
            for part in (body[0], body[2], head, model):
                fully_shard(part, mesh=dist.init_device_mesh("cpu", (WORLD,)))
        optimizer = sf.StackelbergSGD(
            [
                {"params": list(body.parameters())},
                {"params": list(head.parameters()), "role": "head"},
            ],
            lr=0.05,
            momentum=0.9,
            mode="alternating",
        )
        rows = slice(dist.get_rank() * ROWS, (dist.get_rank() + 1) * ROWS)
        batches = torch.Generator().manual_seed(1)
        for _ in range(3):
            inputs = torch.randn(WORLD * ROWS, 5, generator=batches)
            targets = torch.randn(WORLD * ROWS, 3, generator=batches)
            mine = (inputs[rows], targets[rows]) if sharded else (inputs, targets)

            def closure(mine: Any = mine, model: Any = model, optimizer: Any = optimizer) -> Any:
                optimizer.zero_grad()
                loss = F.mse_loss(model(mine[0]), mine[1])
                loss.backward()
                return loss

            optimizer.step(closure)
        found.append(_weights(optimizer))
    torch.testing.assert_close(found[1], found[0])


@needs_averages
def test_a_sharded_model_alternates_as_a_whole(ranks: Ranks) -> None:
    ranks(WORLD, _whole_model_alternates)
