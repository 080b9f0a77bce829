"""Alternating steps with an exact head, and bad input, which is refused before a parameter moves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import normal
from checks import Snapshot, assert_same_bits
from games import (
    ROWS,
    all_of,
    by_hand_step,
    data,
    optimizer_of,
    players,
)
from torch import Tensor, nn

import stackelberg_fused as sf


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_an_exact_head(loss: str, parts: int) -> None:
    """The body moves by the hypergradient grad Phi, and the head is at its best response."""
    pytest.importorskip("scipy")
    body, head = players()
    optimizer = optimizer_of(body, head, "sgd")
    inputs, targets = data(0)
    loss_fn = F.cross_entropy if loss == "cross_entropy" else F.mse_loss
    targets = targets if loss == "cross_entropy" else normal((ROWS, 4), 5)
    before = [p.detach().clone() for p in body.parameters()]
    value = sf.stackelberg_value(body, head, inputs, targets, loss, 0.01)
    did = sf.alternating_step(
        body,
        head,
        loss_fn,
        optimizer,
        inputs,
        targets,
        "exact",
        ridge=0.01,
        microbatches=parts,
        zero_grad=False,
    )
    assert did.response.value == pytest.approx(value.phi)
    assert (did.head, did.head_losses.numel()) == ((), 0)
    ridge = 0.005 * sum(p.square().sum().item() for p in head.parameters())
    assert float(did.loss) + ridge == pytest.approx(value.phi, rel=1e-5)
    gradients = [p.grad for p in body.parameters()]
    norm = torch.cat([g.flatten() for g in gradients]).norm()
    assert float(norm) == pytest.approx(value.grad_norm, rel=1e-4)
    for p, old, gradient in zip(body.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.01 * gradient)
    assert optimizer.launches == 1


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "swapped": (
        lambda a: a.update(body=a["head"], head=a["body"]),
        ValueError,
        r"parameter 'weight' of the body is in a param group of role 'head'",
    ),
    "another optimizer": (
        lambda a: a.update(optimizer=torch.optim.SGD(a["body"].parameters())),
        TypeError,
        "Stackelberg optimizer, got SGD",
    ),
    "no head group": (
        lambda a: a.update(optimizer=sf.StackelbergSGD(a["body"].parameters())),
        ValueError,
        "no param group of role 'head'",
    ),
    "a wrapper": (
        lambda a: a.update(optimizer=SimpleNamespace(optimizer=a["optimizer"])),
        TypeError,
        "got SimpleNamespace; pass what it wraps, its .optimizer",
    ),
    "no callable": (lambda a: a.update(head=3), TypeError, "head must be a module"),
    "no steps": (lambda a: a.update(head_steps=0), ValueError, "head_steps must be >= 1"),
    "half a step": (lambda a: a.update(head_steps=1.5), TypeError, "head_steps must be an int"),
    "no parts": (lambda a: a.update(microbatches=0), ValueError, "microbatches must be >= 1"),
    "more parts than rows": (
        lambda a: a.update(microbatches=ROWS + 1),
        ValueError,
        f"inputs: {ROWS} rows cannot be cut into {ROWS + 1}",
    ),
    "rows that differ": (
        lambda a: a.update(microbatches=2, targets=a["targets"][:-1]),
        ValueError,
        f"inputs have {ROWS} rows, targets {ROWS - 1}",
    ),
    "no rows": (
        lambda a: a.update(microbatches=2, inputs=torch.ones(())),
        ValueError,
        "inputs: a tensor without dimensions",
    ),
    "frozen body": (
        lambda a: a["body"].requires_grad_(False),
        ValueError,
        "the body's output needs no gradient",
    ),
    "exactly": (lambda a: a.update(head_steps="exactly"), ValueError, "an int or 'exact'"),
    "exact without a ridge": (lambda a: a.update(head_steps="exact"), ValueError, "ridge > 0"),
    "a ridge alone": (lambda a: a.update(ridge=1.0), ValueError, "head_steps='exact' only"),
    "exact, another head": (
        lambda a: a.update(head_steps="exact", ridge=1.0, head=nn.Sequential(a["head"])),
        TypeError,
        "nn.Linear, got Sequential",
    ),
    "loss by row": (
        lambda a: a.update(loss_fn=lambda o, t: F.cross_entropy(o, t, reduction="none")),
        ValueError,
        r"one element, got shape \(12,\)",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_refused(kind: str) -> None:
    body, head = players()
    inputs, targets = data(0)
    arguments = {
        "body": body,
        "head": head,
        "loss_fn": F.cross_entropy,
        "optimizer": optimizer_of(body, head),
        "inputs": inputs,
        "targets": targets,
    }
    change, error, match = BAD[kind]
    change(arguments)
    before = [p.detach().clone() for p in all_of((body, head))]
    with pytest.raises(error, match=match):
        sf.alternating_step(**arguments)
    for p, old in zip(all_of((body, head)), before, strict=True):
        assert_same_bits(p.detach(), old)


def test_what_mode_alternating_refuses() -> None:
    body, head = players()
    with pytest.raises(ValueError, match="unknown mode 'both'"):
        optimizer_of(body, head, mode="both")
    optimizer = optimizer_of(body, head, mode="alternating")
    with pytest.raises(ValueError, match="needs a closure"):
        optimizer.step()
    F.cross_entropy(head(body(data(0)[0])), data(0)[1]).backward()
    optimizer.step(role="head")  # by hand


def test_groups_that_change_sides_are_noticed() -> None:
    body, head = players()
    optimizer = optimizer_of(body, head)
    sf.alternating_step(body, head, F.cross_entropy, optimizer, *data(0))
    extra = nn.Linear(7, 4)
    optimizer.add_param_group({"params": extra.parameters()})
    with pytest.raises(ValueError, match="is in a param group of role 'body'"):
        sf.alternating_step(body, extra, F.cross_entropy, optimizer, *data(0))


def test_a_head_that_begins_in_place() -> None:
    """The first operation of the head works in place, and applying it twice would change the result."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(7, 4)

        def forward(self, features: Tensor) -> Tensor:
            return self.linear(features.mul_(0.5).relu_())

    body, head = players()[0][:3], Scaled()
    twins = copy.deepcopy((body, head))
    ours, by_hand = optimizer_of(body, head, "sgd"), optimizer_of(*twins, "sgd")
    inputs, targets = data(0)
    sf.alternating_step(body, head, F.cross_entropy, ours, inputs, targets, 2)
    by_hand_step(twins[0], twins[1], by_hand, inputs, targets, 2)
    for p, q in zip(all_of((body, head)), all_of(twins), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("grads", ["gather", "flat"])
def test_a_weight_that_the_head_shares_unseen_is_refused(grads: str) -> None:
    """A callable shows no parameters; the gradient of the body's weight shows the sharing."""
    body, head = players()
    optimizer = optimizer_of(body, head, grads=grads)
    before = [p.detach().clone() for p in all_of((body, head))]
    inputs, targets = data(0)
    with pytest.raises(RuntimeError, match="parameter 0 of the body is used by the head"):
        sf.alternating_step(
            body,
            lambda z: head(z) + body[0].weight.sum(),
            lambda out, y: out.square().mean(),
            optimizer,
            inputs,
            targets,
        )
    for p, old in zip(all_of((body, head)), before, strict=True):
        assert_same_bits(p.detach(), old)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("head_steps", "parts"), [(1, 1), (3, 1), (2, 3)])
def test_a_head_without_use_for_the_features_is_refused_before_it_moves(
    head_steps: int, parts: int, scaled: bool
) -> None:
    body, head = players()
    optimizer = optimizer_of(body, head)
    before = Snapshot(optimizer)
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not depend on what the body returned"):
            sf.alternating_step(
                body,
                lambda z: head(z.detach()),
                F.cross_entropy,
                optimizer,
                *data(0),
                head_steps,
                microbatches=parts,
                scaler=scaler,
            )
        before.assert_unchanged()
    sf.alternating_step(body, head, F.cross_entropy, optimizer, *data(0), scaler=scaler)


def test_the_gradient_of_the_features_is_computed_twice_in_the_first_step_alone() -> None:
    body, head = players()
    optimizer, seen = optimizer_of(body, head), []

    def watched(z: Tensor) -> Tensor:
        seen.append(z.requires_grad)
        return head(z)

    for _ in range(2):
        sf.alternating_step(body, watched, F.cross_entropy, optimizer, *data(0))
    sf.alternating_step(body, watched, F.multi_margin_loss, optimizer, *data(0))
    assert seen == [True, True, False, True, True, True]


@pytest.mark.parametrize("wrong", ["sparse", "rate"])
def test_mode_alternating_checks_the_body_before_the_head_moves(wrong: str) -> None:
    body, head = players()
    optimizer = optimizer_of(body, head, mode="alternating")
    before = Snapshot(optimizer)

    def closure() -> Tensor:
        loss = F.cross_entropy(head(body(data(0)[0])), data(0)[1])
        loss.backward()
        if wrong == "sparse":
            body[2].weight.grad = body[2].weight.grad.to_sparse()
        return loss

    if wrong == "rate":
        optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises((RuntimeError, ValueError), match=r"sparse|lr"):
        optimizer.step(closure)
    before.assert_unchanged()


def test_mode_alternating_needs_both_players() -> None:
    head = nn.Parameter(torch.ones(3))
    ours = sf.StackelbergSGD([{"params": [head], "role": "head"}], mode="alternating")
    with pytest.raises(ValueError, match="no param group has role 'body'"):
        ours.step(lambda: head.sum().backward())
    assert head.tolist() == [1.0] * 3


@pytest.mark.parametrize("what", ["constraint", "ema", "frozen", "targets", "parametrized"])
def test_what_an_exact_head_refuses(what: str) -> None:
    body, head = players()
    inputs, targets = data(0)[0], normal((ROWS, 4), 3)
    more: dict[str, Any] = {}
    if what == "constraint":
        more["constraint"] = {"head": sf.Box(-1, 1)}
    elif what == "ema":
        more["ema_decay"] = 0.9
    elif what == "targets":
        targets[0] = torch.nan
    elif what == "frozen":
        head.bias.requires_grad_(False)
    else:
        head = nn.utils.parametrizations.weight_norm(head)
    optimizer = optimizer_of(body, head, **more)
    before = [p.detach().clone() for p in all_of((body, head))]
    with pytest.raises((ValueError, TypeError)):
        sf.alternating_step(body, head, F.mse_loss, optimizer, inputs, targets, "exact", ridge=0.1)
    for p, old in zip(all_of((body, head)), before, strict=True):
        assert_same_bits(p.detach(), old)


class _Tied(nn.Module):
    """A model whose head shares its weight with the embedding; `features` is the model without the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.lm_head = nn.Linear(8, 10, bias=False)
        self.lm_head.weight = self.embedding.weight

    def features(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.hidden(self.embedding(tokens)))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lm_head(self.features(tokens))


@pytest.mark.parametrize("head_steps", [1, "exact"])
@pytest.mark.parametrize("kind", ["method", "lambda", "in place"])
def test_a_head_that_a_callable_body_uses_too(kind: str, head_steps: Any) -> None:
    model, tokens = _Tied(), torch.arange(10)
    bodies = {
        "method": model.features,
        "lambda": lambda x: torch.tanh(model.embedding(x) @ model.lm_head.weight[:8]),
        "in place": lambda x: torch.tanh(model.lm_head(model.embedding(x)))[:, :8],
    }
    optimizer = sf.StackelbergSGD(sf.split_body_head(model, head="lm_head", tied="head"), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    how = {"ridge": 0.1} if head_steps == "exact" else {}
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"embedding.weight' of the head is used by the body too"
        ):
            sf.alternating_step(
                bodies[kind],
                model.lm_head,
                F.cross_entropy,
                optimizer,
                tokens,
                tokens,
                head_steps,
                **how,
            )
    for now, then in zip(model.parameters(), before, strict=True):
        assert_same_bits(now, then)
        assert now.grad is None


def test_a_frozen_head() -> None:
    body, head = players()
    optimizer = optimizer_of(body, head, "sgd")
    head.requires_grad_(False)
    with pytest.raises(ValueError, match="the head has no trained parameters"):
        sf.alternating_step(body, head, F.cross_entropy, optimizer, *data(0))


def test_torchs_cross_entropy_of_more_than_rows() -> None:
    """Torch has the classes in dimension 1: the exact head would minimise a different loss than the body."""
    body, head = nn.Sequential(nn.Linear(5, 6), nn.Tanh()), nn.Linear(6, 3)
    optimizer = optimizer_of(body, head, "sgd")
    inputs, targets = normal((4, 7, 5), 1), normal((4, 7, 3), 2).softmax(-1)
    before = head.weight.detach().clone()
    with pytest.raises(ValueError, match="takes classes in dimension 1"):
        sf.alternating_step(
            body, head, F.cross_entropy, optimizer, inputs, targets, "exact", ridge=0.1
        )
    assert_same_bits(head.weight, before)
