"""An optimizer that was built before its model was sharded says so at its first step, and no other one does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
import wrapped_models as models
from ranks import Ranks, of_ranks
from torch import nn

import stackelberg_fused as sf

pytestmark = of_ranks
MESSAGE = r"parameter '0.weight' of param group 0 \(body\): it is no parameter of its model.*Build the optimizer after"


def _built_too_early(wrapper: str, has_mark: bool) -> None:
    model = models.plain()
    named = dict(model.named_parameters())
    ours = sf.StackelbergAdamW(models.groups_of(model), backend="cpu")
    wrapped = models.WRAPPERS[wrapper](model)
    if not has_mark:  # as of a torch before 2.13
        for param in named.values():
            param.__dict__.pop("_fsdp_orig_uid", None)
    inputs, _ = next(iter(models.batches(1, wrapper)))
    wrapped(inputs).sum().backward()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=MESSAGE):
            ours.step()
    assert not ours.state
    again = sf.StackelbergAdamW(models.groups_of(wrapped), backend="cpu")
    again.step()


@pytest.mark.parametrize(
    "wrapper, has_mark", [("FSDP2", True), ("FSDP2", False), ("FSDP1, flat", False)]
)
def test_an_optimizer_built_before_its_model_was_sharded(
    ranks: Ranks, wrapper: str, has_mark: bool
) -> None:
    ranks(2, _built_too_early, wrapper, has_mark)


def _half_of_it_too_early() -> None:
    """A part of the model was sharded later: the rest has gradients, and does not move."""
    from torch.distributed.fsdp import fully_shard

    model = models.plain()
    ours = sf.StackelbergAdamW(models.groups_of(model), backend="cpu")
    before = [p.detach().clone() for p in model[4].parameters()]
    fully_shard(model[0])
    model(next(iter(models.batches(1, "FSDP2")))[0]).sum().backward()
    with pytest.raises(RuntimeError, match=MESSAGE):
        ours.step()
    assert all(map(torch.equal, before, model[4].parameters()))
    assert not ours.state


@pytest.mark.skipif(
    not models.MARKS, reason="parameters do not say in this torch that fully_shard() replaced them"
)
def test_a_part_that_was_sharded_later(ranks: Ranks) -> None:
    ranks(2, _half_of_it_too_early)


def _is_quiet(build: Any) -> None:
    ours = build()
    for _ in range(2):
        ours.step()


def _no_false_alarm() -> None:
    """Steps without gradients beside a sharded model, of a twin and of tensors of nobody's."""
    sharded = models.fsdp2(models.plain())
    inputs, _ = next(iter(models.batches(1, "FSDP2")))
    twin, idle = models.plain(), models.fsdp2(models.plain())
    loose = [nn.Parameter(torch.ones(7, 5)), nn.Parameter(torch.ones(3))]
    sharded(inputs).sum().backward()
    for held in (models.groups_of(twin), models.groups_of(idle), loose):
        _is_quiet(lambda held=held: sf.StackelbergAdamW(held, backend="cpu"))
    dist.barrier()


def test_steps_without_gradients_are_no_error(ranks: Ranks) -> None:
    ranks(2, _no_false_alarm)
