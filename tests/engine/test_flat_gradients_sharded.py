"""Flat gradients of shards: autograd and FSDP2 add to what lies in the buffer of each rank."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
import wrapped_models as models
from backends import chosen
from ranks import Ranks, of_ranks
from sharded_layouts import lay_out
from torch import Tensor, nn
from wrapped_models import local, whole

import stackelberg_fused as sf
from stackelberg_fused.memory.arena import padded

pytestmark = of_ranks
STEPS = 3


def _params(optimizer: Any) -> list[Any]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _assert_attached(optimizer: Any) -> None:
    """The shards of gradients are in the buffers of this rank, one behind the other."""
    for role, buffers in optimizer.flat_grads.items():
        (buffer,) = buffers
        at = buffer.data_ptr()
        for group in (g for g in optimizer.param_groups if g["role"] == role):
            for p in group["params"]:
                grad = local(p.grad)
                assert p.grad.placements == p.placements
                if grad.numel():
                    assert grad.data_ptr() == at
                at += padded(grad.numel()) * grad.element_size()
        assert at == buffer.data_ptr() + buffer.numel() * buffer.element_size()


def _wrapped(wrapper: str, backend: str) -> None:
    trained = []
    for grads in ("flat", "gather"):
        model = models.WRAPPERS[wrapper](_even(wrapper))
        groups = models.groups_of(model)
        optimizer = sf.StackelbergAdamW(
            groups, backend=chosen(backend)[0], grads=grads, max_grad_norm=0.05
        )
        objects = [p.grad for p in _params(optimizer)]
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not in the flat buffer")
            for number, (inputs, targets) in enumerate(models.batches(2 * STEPS, wrapper)):
                is_last = number % 2 == 1
                with models.reducing(model, is_last or number < 2):
                    nn.functional.mse_loss(model(inputs), targets).backward()
                if grads == "flat":
                    for p, grad in zip(_params(optimizer), objects, strict=True):
                        assert p.grad is grad
                    _assert_attached(optimizer)
                if is_last:
                    optimizer.step(zero_grad=number < 4)
                    if number >= 4:
                        optimizer.zero_grad()
                    assert all(
                        p.grad is None or not local(p.grad).any() for p in _params(optimizer)
                    )
        trained.append([local(p) for p in _params(optimizer)])
    for p, q in zip(*trained, strict=True):
        assert torch.equal(p, q)


def _even(wrapper: str) -> nn.Sequential:
    model = models.plain()
    if wrapper.startswith("TP"):
        model[0], model[2] = nn.Linear(5, 6), nn.Linear(6, 2)
    return model


@pytest.mark.parametrize("backend", ["cpu", "reference", "cuda-on-host"])
@pytest.mark.parametrize(
    "wrapper, world",
    [("FSDP2", 2), ("FSDP2", 3), ("FSDP2, mixed", 2), ("HSDP", 4), ("TP + FSDP2", 4)],
)
def test_steps_are_as_with_gathered_gradients(
    ranks: Ranks, wrapper: str, world: int, backend: str
) -> None:
    ranks(world, _wrapped, wrapper, backend)


def _laid_out(layout: str) -> None:
    values = [torch.arange(12.0).view(4, 3), torch.arange(3.0).view(1, 3), torch.arange(5.0)]
    params = [nn.Parameter(p) for p in lay_out(values, layout)]
    optimizer = sf.StackelbergSGD(params, lr=1.0, grads="flat")
    views = [p.grad for p in params]
    for factor in (1.0, 2.0):
        _sum_of_squares(params).backward()
        for p, view, value in zip(params, views, values, strict=True):
            assert p.grad is view
            assert torch.equal(whole(view), 2 * factor * value)
    buffer = optimizer.flat_grads["body"][0]
    buffer /= 4  # by who reduces it
    optimizer.step(zero_grad=True)
    assert not buffer.any()
    assert all(not whole(p.detach()).any() for p in params)
    # as `model.zero_grad()` leaves them
    for p in params:
        p.grad = None
    _sum_of_squares(params).backward()
    with pytest.warns(UserWarning, match="is not in the flat buffer"):
        optimizer.step()
    assert optimizer.flat_grads["body"][0] is buffer
    assert all(p.grad is view for p, view in zip(params, views, strict=True))


def _sum_of_squares(params: list[Any]) -> Tensor:
    wholes = [whole(p) for p in params]
    return sum(((p * p).sum() for p in wholes), torch.zeros(()))


@pytest.mark.parametrize(
    "layout, world", [("rows", 2), ("columns", 3), ("copies of rows", 4), ("rows and columns", 4)]
)
def test_autograd_adds_to_the_buffers(ranks: Ranks, layout: str, world: int) -> None:
    ranks(world, _laid_out, layout)


def _kept_or_refused() -> None:
    """What has come before the optimizer goes into the buffers, or is refused before anything is."""
    from torch.distributed.tensor import DTensor, Partial

    p, q = (nn.Parameter(p) for p in lay_out([torch.ones(4, 3), torch.ones(5)], "rows"))
    p.grad = lay_out([torch.full((4, 3), 2.0)], "rows")[0]
    mesh = dist.init_device_mesh("cpu", (2,))
    q.grad = DTensor.from_local(torch.ones(5), mesh, [Partial()], run_check=False)
    before = local(p).data_ptr(), p.grad
    with pytest.raises(ValueError, match=r"parameter 1 of param group 0.*summed over ranks"):
        sf.StackelbergSGD([p, q], lr=1.0, grads="flat")
    assert (local(p).data_ptr(), p.grad) == (before[0], p.grad)
    assert p.grad is before[1]
    q.grad = None
    optimizer = sf.StackelbergSGD([p, q], lr=1.0, grads="flat")
    _assert_attached_body(optimizer)
    assert bool(whole(p.grad).eq(2.0).all())
    optimizer.step()
    assert bool(whole(p.detach()).eq(-1.0).all())


def _assert_attached_body(optimizer: Any) -> None:
    (buffer,) = optimizer.flat_grads["body"]
    assert local(_params(optimizer)[0].grad).data_ptr() == buffer.data_ptr()


def test_gradients_from_before(ranks: Ranks) -> None:
    ranks(2, _kept_or_refused)
