"""Flat gradients of parameters that are frozen, moved or replaced, and gradients that do not lie in the buffer."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from backends import by_backend, chosen
from cases import gradient
from checks import all_params, assert_same_optimizers
from flat_buffers import (
    ADAM,
    assert_attached,
    fill,
    flat_optimizer,
    flat_sgd,
    zeros,
)
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.memory.arena import padded


@pytest.mark.parametrize("flatten", [True, False])
def test_frozen_parameters(flatten: bool) -> None:
    """They get no place; once they are trained they do, or whoever reduces the buffers would miss them."""
    trained, frozen = zeros(5), zeros(70).requires_grad_(False)
    ours = flat_sgd(trained, frozen, flatten=flatten)
    assert frozen.grad is None
    assert_attached(ours)
    ours.step()
    frozen.requires_grad_(True)
    (trained.sum() + frozen.sum()).backward()
    assert_attached(ours, 1.0)
    ours.step(zero_grad=True)
    assert_attached(ours, 0.0)
    assert (trained.tolist(), frozen.tolist()) == ([-1.0] * 5, [-1.0] * 70)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_parameters_of_another_dtype_have_a_place_once_they_are_trained(
    dtype: torch.dtype,
) -> None:
    """Or whoever reduces the buffers would miss them."""
    trained = zeros(5)
    frozen = nn.Parameter(torch.zeros(70, dtype=dtype), requires_grad=False)
    ours = flat_sgd(trained, frozen, backend="auto")
    trained.sum().backward()
    ours.step(zero_grad=True)
    frozen.requires_grad_(True)
    (trained.sum() + frozen.sum()).backward()
    for buffer in ours.flat_grads["body"]:
        buffer.mul_(10.0)
    ours.step()
    assert frozen.tolist() == [-10.0] * 70


def test_a_group_that_changes_sides_takes_its_gradients_along() -> None:
    first, second = zeros(5), zeros(70)
    ours = sf.StackelbergSGD([{"params": [first]}, {"params": [second]}], lr=1.0, grads="flat")
    (first.sum() + second.sum()).backward()
    ours.param_groups[1]["role"] = "head"
    assert [len(ours.flat_grads[role]) for role in ("body", "head")] == [1, 1]
    assert_attached(ours, 1.0)


@pytest.mark.parametrize("how", ["step", "zero_grad"])
def test_a_parameter_that_is_frozen_stays_where_it_is(how: str) -> None:
    trained, frozen = zeros(5), zeros(70)
    ours = flat_sgd(trained, frozen, momentum=0.9)
    (trained.sum() + frozen.sum()).backward()
    ours.step(zero_grad=True)
    frozen.requires_grad_(False)
    for _ in range(2):
        if how == "zero_grad":
            ours.zero_grad()
        trained.sum().backward()
        ours.step(zero_grad=how == "step")
    assert frozen.tolist() == [-1.0] * 70
    assert frozen.grad is None
    assert ours.flat_grads["body"][0].numel() == padded(5)


def test_gradients_without_a_place_that_share_memory() -> None:
    params = [zeros(5), *(nn.Parameter(torch.zeros(5), requires_grad=False) for _ in range(2))]
    ours = flat_sgd(*params)
    shared = torch.ones(5)
    for p in params[1:]:
        p.grad = shared
    ours.step(zero_grad=True)
    assert [p.tolist() for p in params] == [[0.0] * 5, [-1.0] * 5, [-1.0] * 5]
    assert [p.grad is None for p in params] == [False, True, True]


def test_who_asks_for_the_buffers_gets_all_gradients() -> None:
    """Also those that a model's own zero_grad led elsewhere: whoever reduces the buffers asks before."""
    model = nn.Linear(3, 2)
    ours = flat_sgd(*model.parameters())
    model.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    (buffer,) = ours.flat_grads["body"]
    assert float(buffer.sum()) == float(sum(grad.sum() for grad in found)) != 0
    assert_attached(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.step()


ODD: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: gradient((4, 6), 1).clone(),
    "transposed": lambda: gradient((6, 4), 1).clone().t(),
    "gaps": lambda: gradient((4, 12), 1).clone()[:, ::2],
    "expanded": lambda: gradient((4, 1), 1).clone().expand(4, 6),
    "negated": lambda: torch._neg_view(gradient((6, 4), 1).clone()).t(),
}


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize("kind", ODD)
@by_backend
def test_a_gradient_elsewhere_is_cleared_itself(backend: str, kind: str, skipped: bool) -> None:
    """Not only the copy that a kernel reads; then the view is back."""
    device = chosen(backend)[1]
    p = nn.Parameter(torch.zeros(4, 6, device=device))
    ours = flat_sgd(p, backend=backend)
    ours.step()  # by zeros: now it is known where gradients were
    view, foreign = p.grad, ODD[kind]().to(device)
    p.grad, value = foreign, foreign.clone()
    if skipped:
        ours.found_inf = torch.ones((), device=device)
    with pytest.warns(UserWarning, match="flat buffer"):
        ours.step(zero_grad=True)
    torch.testing.assert_close(p.detach(), -value * (not skipped))
    assert p.grad is view
    assert [int(t.count_nonzero()) for t in (view, foreign)] == [0, 0]


def test_gradients_that_share_memory_all_count() -> None:
    params = [zeros(5000), zeros(5000)]
    ours = flat_sgd(*params)
    params[0].grad = params[1].grad = torch.ones(5000)
    with pytest.warns(UserWarning, match="flat buffer"):
        ours.step(zero_grad=True)
    assert all(bool((p == -1.0).all()) for p in params)


@by_backend
def test_a_model_that_clears_gradients_itself(backend: str) -> None:
    flat, gathered = (flat_optimizer(ADAM, backend, grads=grads) for grads in ("flat", "gather"))
    caught = []
    for number in range(3):
        for optimizer in (flat, gathered):
            for p in all_params(optimizer):
                p.grad = None
            fill(optimizer, number)
            with warnings.catch_warnings(record=True) as found:
                optimizer.step()
            caught += found
    (warning,) = caught
    label = next(i for i, p in enumerate(flat.param_groups[0]["params"]) if p.numel())
    assert f"parameter {label} of param group 0 (body)" in str(warning.message)
    assert warning.filename == __file__
    assert_same_optimizers(flat, gathered)
    flat.zero_grad()
    assert_attached(flat, 0.0)


MOVED = [torch.zeros(6, 4).t(), torch.zeros(70), torch.zeros(4, 6).double()]


@pytest.mark.parametrize("data", MOVED, ids=["strides", "shape", "dtype"])
def test_parameters_that_are_moved_before_the_first_step(data: Tensor) -> None:
    p = zeros(4, 6)
    ours = flat_sgd(p, backend="reference")
    p.grad = None
    p.data = data.clone()
    p.sum().backward()
    ours.step()
    assert bool((p == -1.0).all())
    assert p.grad.stride() == p.stride()
    assert_attached(ours, 1.0)


def test_parameters_that_are_put_into_a_group_by_hand() -> None:
    first, second = zeros(5), zeros(70)
    ours = flat_sgd(first)
    first.data = torch.zeros(5)  # like before: nothing changes
    ours.param_groups[0]["params"].append(second)
    (first.sum() + second.sum()).backward()
    assert_attached(ours, 1.0)
    ours.param_groups[0]["params"].pop()
    ours.zero_grad()
    assert_attached(ours, 0.0)
