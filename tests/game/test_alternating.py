"""The alternating step against a hand-written loop, and against `step(closure)` on the whole model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import by_backend, chosen
from checks import assert_same_bits
from games import (
    ROWS,
    all_of,
    assert_same_players,
    by_hand_step,
    data,
    optimizer_of,
    players,
)
from torch import Tensor, nn

import stackelberg_fused as sf


@pytest.mark.parametrize("grads", ["gather", "flat"])
@pytest.mark.parametrize("head_steps", [1, 3])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@by_backend
def test_same_bits_as_a_loop_that_evaluates_everything_anew(
    backend: str, kind: str, head_steps: int, grads: str
) -> None:
    instance, device = chosen(backend)
    cut, whole = players(device), players(device)
    ours, by_hand = (
        optimizer_of(*m, kind, backend=instance, grads=grads, max_grad_norm=0.5)
        for m in (cut, whole)
    )
    for number in range(4):
        inputs, targets = data(number, device)
        did = sf.alternating_step(*cut, F.cross_entropy, ours, inputs, targets, head_steps)
        loss, head_losses = by_hand_step(*whole, by_hand, inputs, targets, head_steps)
        assert_same_bits(did.loss, loss)
        assert_same_bits(did.head_losses, torch.stack(head_losses))
        assert len(did.head) == head_steps
        assert did.body.launches == (0 if backend == "reference" else 2)
        assert float(did.body.grad_norm["body"]) > 0
        assert "head" not in did.body.grad_norm
        assert all(float(step.grad_norm["head"]) > 0 for step in did.head)
    assert_same_players(cut, whole)
    for p in all_of(cut):
        assert p.grad is None if grads == "gather" else not p.grad.count_nonzero()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@by_backend
def test_mode_alternating_for_models_that_cannot_be_cut(backend: str, kind: str) -> None:
    instance, device = chosen(backend)
    cut, whole = players(device), players(device)
    ours = optimizer_of(*cut, kind, backend=instance)
    closed = optimizer_of(*whole, kind, backend=instance, mode="alternating")
    for number in range(4):
        inputs, targets = data(number, device)
        did = sf.alternating_step(*cut, F.cross_entropy, ours, inputs, targets)

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            loss = F.cross_entropy(whole[1](whole[0](inputs)), targets)
            loss.backward()
            return loss

        loss = closed.step(closure, zero_grad=bool(number % 2))
        assert_same_bits(loss.detach(), did.loss)
        assert (whole[0][0].weight.grad is None) == bool(number % 2)
    assert_same_players(cut, whole)
    assert closed.launches == ours.launches == (0 if backend == "reference" else 8)


def test_the_body_takes_one_forward_pass_and_the_head_no_gradient_it_does_not_need() -> None:
    body, head = players()
    counts = {"body": 0, "head": 0}
    body.register_forward_hook(lambda *_: counts.__setitem__("body", counts["body"] + 1))
    head.register_forward_hook(lambda *_: counts.__setitem__("head", counts["head"] + 1))
    gradients = []
    head.weight.register_hook(lambda grad: gradients.append(grad))
    sf.alternating_step(body, head, F.cross_entropy, optimizer_of(body, head), *data(0), 2)
    assert counts == {"body": 1, "head": 3}
    assert len(gradients) == 2


class Noisy(nn.Module):
    """A body with dropout, which differs in each forward pass, and batch norm, which counts the passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.drop(self.norm(self.first(inputs)))


def test_what_dropout_and_batch_norm_change() -> None:
    """alternating_step draws one dropout mask for both players and counts one batch; a closure draws and counts two."""
    twins = [(Noisy(), nn.Linear(7, 4))]
    twins.append(copy.deepcopy(twins[0]))
    cut, whole = twins
    inputs, targets = data(0)
    torch.manual_seed(3)
    ours = optimizer_of(*cut)
    did = sf.alternating_step(*cut, F.cross_entropy, ours, inputs, targets)
    torch.manual_seed(3)
    losses = []

    def closure() -> Tensor:
        loss = F.cross_entropy(whole[1](whole[0](inputs)), targets)
        loss.backward()
        losses.append(loss.detach())
        return loss

    optimizer_of(*whole, mode="alternating").step(closure)
    assert [int(body.norm.num_batches_tracked) for body, _ in twins] == [1, 2]
    # same mask, same head gradient; another mask, another body gradient
    assert_same_bits(did.head_losses[0], losses[0])
    assert_same_players(cut[1:], whole[1:])
    assert not torch.equal(did.loss, losses[1])
    assert not torch.equal(cut[0].first.weight, whole[0].first.weight)


@pytest.mark.parametrize("parts", [2, 5, ROWS])
def test_microbatches_give_the_whole_batch_to_rounding(parts: int) -> None:
    """Microbatches of different sizes are included."""
    cut, whole = players(), players()
    ours, other = optimizer_of(*cut, "sgd"), optimizer_of(*whole, "sgd")
    for number in range(3):
        did = sf.alternating_step(*cut, F.cross_entropy, ours, *data(number), 2, microbatches=parts)
        expected = sf.alternating_step(*whole, F.cross_entropy, other, *data(number), 2)
        torch.testing.assert_close(did.loss, expected.loss)
        torch.testing.assert_close(did.head_losses, expected.head_losses)
    for p, q in zip(all_of(cut), all_of(whole), strict=True):
        torch.testing.assert_close(p, q)


class Nested(nn.Module):
    """A body with nested inputs and outputs; one output tensor needs no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(6, 2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        x = batch["x"]
        return {
            "both": (self.first(x), [self.second(x)]),
            "mask": batch["mask"],
            "note": "as it is",
        }


def test_features_in_a_nest() -> None:
    body, linear = Nested(), nn.Linear(7, 4)

    def head(features: dict[str, Any]) -> Tensor:
        first, (second,) = features["both"]
        assert features["note"] == "as it is"
        return linear(torch.cat([first, second], 1)) * features["mask"]

    optimizer = optimizer_of(body, linear)
    inputs, targets = data(0)
    before = [p.detach().clone() for p in all_of((body, linear))]
    batch = {"x": inputs, "mask": torch.ones(ROWS, 1)}
    for parts in (1, 3):
        sf.alternating_step(
            body, head, F.cross_entropy, optimizer, batch, targets, microbatches=parts
        )
    assert not any(torch.equal(p, q) for p, q in zip(all_of((body, linear)), before, strict=True))


def test_gradients_are_left_alone_where_that_is_asked_for() -> None:
    body, head = players()
    optimizer = optimizer_of(body, head, "sgd")
    inputs, targets = data(0)
    sf.alternating_step(body, head, F.cross_entropy, optimizer, inputs, targets, zero_grad=False)
    # what was there counts
    before = [p.detach().clone() for p in body.parameters()]
    found = [p.grad.clone() for p in body.parameters()]
    sf.alternating_step(body, head, F.cross_entropy, optimizer, inputs, targets, 2, zero_grad=False)
    for p, old, gradient in zip(body.parameters(), before, found, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.01 * p.grad)
        assert float((p.grad - gradient).abs().max()) > 0
        torch.testing.assert_close(p.grad, 2 * gradient, rtol=0.2, atol=0.02)


def test_inside_one_autocast_region_the_new_head_is_used() -> None:
    """Torch caches the cast of a weight until the region ends."""
    cut, whole = players(), players()
    ours, by_hand = optimizer_of(*cut, "sgd", lr=0.3), optimizer_of(*whole, "sgd", lr=0.3)
    for number in range(3):
        inputs, targets = data(number)
        with torch.autocast("cpu", torch.bfloat16):
            did = sf.alternating_step(*cut, F.cross_entropy, ours, inputs, targets, 2)
        by_hand.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            features = whole[0](inputs)
        for _ in range(2):
            by_hand.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                F.cross_entropy(whole[1](features.detach()), targets).backward()
            by_hand.step(role="head")
        by_hand.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(whole[1](features), targets)
        loss.backward()
        by_hand.step(role="body")
        assert_same_bits(did.loss, loss.detach())
    assert_same_players(cut, whole)


def test_mode_alternating_inside_one_autocast_region() -> None:
    cut, whole = players(), players()
    ours = optimizer_of(*cut, "sgd", lr=0.3, mode="alternating")
    by_hand = optimizer_of(*whole, "sgd", lr=0.3)
    inputs, targets = data(0)

    def closure() -> Tensor:
        loss = F.cross_entropy(cut[1](cut[0](inputs)), targets)
        loss.backward()
        return loss

    with torch.autocast("cpu", torch.bfloat16):
        ours.step(closure)
    for role in ("head", "body"):
        by_hand.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(whole[1](whole[0](inputs)), targets)
        loss.backward()
        by_hand.step(role=role)
    assert_same_players(cut, whole)
