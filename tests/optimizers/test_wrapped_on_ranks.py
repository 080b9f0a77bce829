"""The wrappers of torch.distributed on several ranks: ours beside torch's optimizer, and beside one process alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import wrapped_models as models
from checks import all_params
from ranks import Ranks, of_ranks
from tolerances import SEVERAL_STEPS
from torch import nn

import stackelberg_fused as sf

pytestmark = of_ranks
STEPS = 4
LARGEST_NORM = 0.05
LOOSE = {"rtol": 1e-4, "atol": 0.0}
ADAMW = (sf.StackelbergAdamW, torch.optim.AdamW, {"weight_decay": 0.1})
SGD = (sf.StackelbergSGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True})
RULES = {"AdamW": ADAMW, "SGD": SGD}

WORLDS = [
    ("DDP", 2),
    ("FSDP1", 2),
    ("FSDP1, flat", 2),
    ("FSDP2", 2),
    ("FSDP2", 3),
    ("FSDP2, mixed", 2),
    ("HSDP", 4),
    ("TP + FSDP2", 4),
]


def _train(wrapper: str, build: Callable[[Any], Any], accumulate: int = 1) -> tuple[Any, Any]:
    """A model after some steps, with its optimizer; the rate falls from step to step."""
    model = models.WRAPPERS[wrapper](_even(wrapper, models.plain()))
    optimizer = build(models.groups_of(model))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    for number, (inputs, targets) in enumerate(models.batches(STEPS * accumulate, wrapper)):
        is_last = (number + 1) % accumulate == 0
        with models.reducing(model, is_last):
            loss = nn.functional.mse_loss(model(inputs), targets)
            (loss / accumulate).backward()
        if is_last:
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model, optimizer


def _alone(wrapper: str, build: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The same in one process, with all rows of each batch."""
    model = _even(wrapper, models.plain())
    optimizer = build(models.groups_of(model))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    for inputs, targets in models.batches(STEPS, "none"):
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model, optimizer


def _even(wrapper: str, model: nn.Sequential) -> nn.Sequential:
    """A width that tensor parallel pairs can share: ColwiseParallel and RowwiseParallel need it, shards do not."""
    if wrapper.startswith("TP"):
        model[0], model[2] = nn.Linear(5, 6), nn.Linear(6, 2)
    return model


def _beside_torch(wrapper: str, rule: str, backend: str, accumulate: int) -> None:
    kind, torchs, settings = RULES[rule]
    _, ours = _train(wrapper, lambda groups: kind(groups, backend=backend, **settings), accumulate)
    _, theirs = _train(wrapper, lambda groups: torchs(groups, **settings), accumulate)
    names = ("momentum_buffer",) if rule == "SGD" else ("exp_avg", "exp_avg_sq")
    for p, q in zip(all_params(ours), all_params(theirs), strict=True):
        torch.testing.assert_close(models.local(p), models.local(q), **SEVERAL_STEPS)
        for name in names:
            mine, its = ours.state[p].get(name), theirs.state[q].get(name)
            assert (mine is None) == (its is None), (name, p.shape, mine is None)
            if mine is not None:
                torch.testing.assert_close(models.local(mine), models.local(its), **SEVERAL_STEPS)
    if backend == "cpu":
        assert ours.launches == STEPS


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("wrapper, world", WORLDS)
def test_ours_is_as_torchs_on_the_same_ranks(
    ranks: Ranks, wrapper: str, world: int, rule: str
) -> None:
    accumulate = 2 if rule == "SGD" else 1
    ranks(world, _beside_torch, wrapper, rule, "cpu", accumulate)


@pytest.mark.parametrize("wrapper, world", [("FSDP2", 3), ("TP + FSDP2", 4)])
def test_the_reference_is_as_torchs_on_the_same_ranks(
    ranks: Ranks, wrapper: str, world: int
) -> None:
    ranks(world, _beside_torch, wrapper, "AdamW", "reference", 1)


# what torch's optimizers have not
EXTRAS: dict[str, dict[str, Any]] = {
    "averages": {"ema_decay": 0.7},
    "turns": {"update_every": {"body": 2}, "update_every_grads": "mean"},
    "balls": {"constraint": {"body": sf.L2Ball(1.5), "head": sf.L2Ball(0.4)}, "ema_decay": 0.5},
    "boxes": {"constraint": {"head": sf.Box(-0.1, 0.1)}, "ema_decay": {"head": 0.5}},
}


def _beside_one_process(wrapper: str, extra: str) -> None:
    """A whole batch alone has the mean of the gradients of all ranks' rows."""

    def build(groups: Any) -> Any:
        return sf.StackelbergAdamW(groups, backend="cpu", **EXTRAS[extra])

    _, shared = _train(wrapper, build)
    _, alone = _alone(wrapper, build)
    bounds = {"rtol": 1e-4, "atol": 1e-5}  # gradients are summed in another order
    for p, q in zip(all_params(shared), all_params(alone), strict=True):
        torch.testing.assert_close(models.whole(p.detach()), q.detach(), **bounds)
        found, expected = shared.state[p], alone.state[q]
        assert found.keys() == expected.keys()
        for name, value in found.items():
            value = models.whole(torch.as_tensor(value))
            torch.testing.assert_close(value, torch.as_tensor(expected[name]), **bounds)
    if extra != "averages":
        return
    with shared.ema_weights():
        for p, q in zip(all_params(shared), all_params(alone), strict=True):
            average = models.whole(p.detach())
            torch.testing.assert_close(average, alone.state[q]["ema"], **bounds)


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize(
    "wrapper, world",
    [
        ("DDP", 2),
        *(
            pytest.param(wrapper, world, marks=models.needs_averages)
            for wrapper, world in (("FSDP2", 2), ("FSDP2", 3), ("HSDP", 4), ("TP + FSDP2", 4))
        ),
    ],
)
def test_ranks_together_are_as_one_process(
    ranks: Ranks, wrapper: str, world: int, extra: str
) -> None:
    ranks(world, _beside_one_process, wrapper, extra)


def _clips_as_torch(wrapper: str) -> None:
    """By the norm over all ranks, in which copies count once; torch's is of another sum."""
    settings = {"weight_decay": 0.1}
    limits = []
    _, ours = _train(
        wrapper,
        lambda groups: sf.StackelbergAdamW(
            groups, backend="cpu", max_grad_norm=LARGEST_NORM, **settings
        ),
    )

    def build(groups: Any) -> Any:
        optimizer = torch.optim.AdamW(groups, **settings)

        def clip(*_: Any) -> None:
            norm = nn.utils.clip_grad_norm_(all_params(optimizer), LARGEST_NORM)
            limits.append(float(models.whole(norm)))

        optimizer.register_step_pre_hook(clip)
        return optimizer

    _, theirs = _train(wrapper, build)
    assert max(limits) > 1.5 * LARGEST_NORM, limits
    for p, q in zip(all_params(ours), all_params(theirs), strict=True):
        torch.testing.assert_close(models.local(p), models.local(q), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(float(ours.last_step.grad_norm["total"]), limits[-1], **LOOSE)


@pytest.mark.parametrize(
    "wrapper, world", [(w, n) for w, n in WORLDS if not w.startswith("FSDP1") and w != "TP + FSDP2"]
)
def test_clipping_is_as_torchs(ranks: Ranks, wrapper: str, world: int) -> None:
    ranks(world, _clips_as_torch, wrapper)


def _clips_as_one_process() -> None:
    """torch's clip_grad_norm_ does not mix meshes, as a tensor parallel model does."""

    def build(groups: Any) -> Any:
        return sf.StackelbergAdamW(groups, backend="cpu", max_grad_norm=LARGEST_NORM)

    _, shared = _train("TP + FSDP2", build)
    _, alone = _alone("TP + FSDP2", build)
    for p, q in zip(all_params(shared), all_params(alone), strict=True):
        torch.testing.assert_close(models.whole(p.detach()), q.detach(), rtol=1e-4, atol=1e-5)
    for role, norm in shared.last_step.grad_norm.items():
        expected = float(alone.last_step.grad_norm[role])
        assert float(norm) == pytest.approx(expected, rel=1e-5), role


@models.needs_averages
def test_clipping_counts_each_part_once(ranks: Ranks) -> None:
    ranks(4, _clips_as_one_process)


def _refuses_to_clip_parts(wrapper: str) -> None:
    model = models.WRAPPERS[wrapper](models.plain())
    ours = sf.StackelbergAdamW(models.groups_of(model), max_grad_norm=1.0, backend="cpu")
    for inputs, targets in models.batches(1, wrapper):
        nn.functional.mse_loss(model(inputs), targets).backward()
    with pytest.raises(ValueError, match=r"parameter '.*' of param group .*clip_grad_norm_"):
        ours.step()
    assert not ours.state
    ours.max_grad_norm = None
    model.clip_grad_norm_(1.0)
    ours.step()


@pytest.mark.parametrize("wrapper", ["FSDP1", "FSDP1, flat"])
def test_a_part_of_what_fsdp1_flattened_is_not_clipped(ranks: Ranks, wrapper: str) -> None:
    ranks(2, _refuses_to_clip_parts, wrapper)


def _waits_for_gradients() -> None:
    """What a collective is still to bring, as a hook may leave it, is no gradient yet."""
    from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce
    from torch.distributed.tensor import DTensor, Replicate

    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    rank = torch.distributed.get_rank()
    values = torch.arange(2.0**16).view(256, 256)
    found = []
    for backend in ("cpu", "reference"):
        param = nn.Parameter(DTensor.from_local(torch.zeros(256, 256), mesh, [Replicate()]))
        ours = sf.StackelbergSGD([("weight", param)], lr=1.0, backend=backend)
        for _ in range(2):
            reduced = all_reduce(values * (1 + rank), "sum", mesh)
            assert isinstance(reduced, AsyncCollectiveTensor)
            param.grad = DTensor.from_local(reduced, mesh, [Replicate()])
            ours.step()
        found.append(param.to_local().detach())
    for values_after in found:
        torch.testing.assert_close(values_after, -6 * values)


def test_gradients_on_their_way_are_waited_for(ranks: Ranks) -> None:
    ranks(2, _waits_for_gradients)


def _refuses_partial_gradients() -> None:
    from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

    mesh = torch.distributed.init_device_mesh("cpu", (2,))
    param = nn.Parameter(distribute_tensor(torch.ones(3, 4), mesh, [Shard(0)]))
    ours = sf.StackelbergSGD([("weight", param)], lr=1.0)
    param.grad = DTensor.from_local(torch.ones(3, 4), mesh, [Partial()])
    with pytest.raises(ValueError, match=r"'weight' .*still to be summed over ranks"):
        ours.step()
    assert bool((param.to_local() == 1).all())
    param.grad = param.grad.redistribute(placements=[Shard(0)])
    ours.step()
    assert bool((param.to_local() == -1).all())


def test_a_gradient_that_is_not_summed_up_is_refused(ranks: Ranks) -> None:
    ranks(2, _refuses_partial_gradients)
