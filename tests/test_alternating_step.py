"""The alternating step against loops written by hand, and against `step(closure)` where the model is not cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import by_backend, chosen
from cases import normal
from checks import assert_same_bits
from torch import Tensor, nn

import stackelberg_fused as sf

ROWS = 12


def _players(device: Any = "cpu") -> tuple[nn.Sequential, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU())
        return body.to(device), nn.Linear(7, 4).to(device)


def _data(number: int, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    targets = torch.arange(number, number + ROWS) % 4
    return normal((ROWS, 6), 100 + number).to(device), targets.to(device)


def _optimizer(body: nn.Module, head: nn.Module, kind: str = "adamw", **more: Any) -> Any:
    groups = [
        {"params": list(body.parameters())},
        {"params": list(head.parameters()), "role": "head"},
    ]
    classes = {"adamw": sf.StackelbergAdamW, "sgd": sf.StackelbergSGD}
    return classes[kind](groups, **{"lr": 0.01, **more})


def _by_hand(
    body: Any, head: Any, optimizer: Any, inputs: Tensor, targets: Tensor, head_steps: int
) -> tuple[Tensor, list[Tensor]]:
    """Everything evaluated anew for each update."""
    losses = []
    for role in ["head"] * head_steps + ["body"]:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(body(inputs)), targets)
        loss.backward()
        optimizer.step(role=role)
        losses.append(loss.detach())
    return losses[-1], losses[:-1]


def _assert_same(first: tuple[nn.Module, ...], second: tuple[nn.Module, ...]) -> None:
    for one, other in zip(first, second, strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            assert_same_bits(p, q)


@pytest.mark.parametrize("grads", ["gather", "flat"])
@pytest.mark.parametrize("head_steps", [1, 3])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@by_backend
def test_same_bits_as_a_loop_that_evaluates_everything_anew(
    backend: str, kind: str, head_steps: int, grads: str
) -> None:
    instance, device = chosen(backend)
    cut, whole = _players(device), _players(device)
    ours, by_hand = (
        _optimizer(*m, kind, backend=instance, grads=grads, max_grad_norm=0.5) for m in (cut, whole)
    )
    for number in range(4):
        inputs, targets = _data(number, device)
        did = sf.alternating_step(*cut, F.cross_entropy, ours, inputs, targets, head_steps)
        loss, head_losses = _by_hand(*whole, by_hand, inputs, targets, head_steps)
        assert_same_bits(did.loss, loss)
        assert_same_bits(did.head_losses, torch.stack(head_losses))
        assert len(did.head) == head_steps
        assert did.body.launches == (0 if backend == "reference" else 2)
        assert float(did.body.grad_norm["body"]) > 0 == float(did.body.grad_norm["head"])
        assert all(float(step.grad_norm["head"]) > 0 for step in did.head)
    _assert_same(cut, whole)
    for p in all_of(cut):
        assert p.grad is None if grads == "gather" else not p.grad.count_nonzero()


def all_of(players: tuple[nn.Module, ...]) -> list[nn.Parameter]:
    return [p for module in players for p in module.parameters()]


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@by_backend
def test_mode_alternating_for_models_that_cannot_be_cut(backend: str, kind: str) -> None:
    instance, device = chosen(backend)
    cut, whole = _players(device), _players(device)
    ours = _optimizer(*cut, kind, backend=instance)
    closed = _optimizer(*whole, kind, backend=instance, mode="alternating")
    for number in range(4):
        inputs, targets = _data(number, device)
        did = sf.alternating_step(*cut, F.cross_entropy, ours, inputs, targets)

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            loss = F.cross_entropy(whole[1](whole[0](inputs)), targets)
            loss.backward()
            return loss

        loss = closed.step(closure, zero_grad=bool(number % 2))
        assert_same_bits(loss.detach(), did.loss)
        assert (whole[0][0].weight.grad is None) == bool(number % 2)
    _assert_same(cut, whole)
    assert closed.launches == ours.launches == (0 if backend == "reference" else 8)


def test_the_body_takes_one_forward_pass_and_the_head_no_gradient_it_does_not_need() -> None:
    body, head = _players()
    counts = {"body": 0, "head": 0}
    body.register_forward_hook(lambda *_: counts.__setitem__("body", counts["body"] + 1))
    head.register_forward_hook(lambda *_: counts.__setitem__("head", counts["head"] + 1))
    gradients = []
    head.weight.register_hook(lambda grad: gradients.append(grad))
    sf.alternating_step(body, head, F.cross_entropy, _optimizer(body, head), *_data(0), 2)
    assert counts == {"body": 1, "head": 3}
    assert len(gradients) == 2


class Noisy(nn.Module):
    """A body whose forward pass is another at each call, and that counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.drop(self.norm(self.first(inputs)))


def test_what_dropout_and_batch_norm_change() -> None:
    """A cut model draws one mask for both players and counts one batch; a closure draws two and counts two."""
    twins = [(Noisy(), nn.Linear(7, 4))]
    twins.append(copy.deepcopy(twins[0]))
    cut, whole = twins
    inputs, targets = _data(0)
    torch.manual_seed(3)
    ours = _optimizer(*cut)
    did = sf.alternating_step(*cut, F.cross_entropy, ours, inputs, targets)
    torch.manual_seed(3)
    losses = []

    def closure() -> Tensor:
        loss = F.cross_entropy(whole[1](whole[0](inputs)), targets)
        loss.backward()
        losses.append(loss.detach())
        return loss

    _optimizer(*whole, mode="alternating").step(closure)
    assert [int(body.norm.num_batches_tracked) for body, _ in twins] == [1, 2]
    # same mask, same head gradient; another mask, another body gradient
    assert_same_bits(did.head_losses[0], losses[0])
    _assert_same(cut[1:], whole[1:])
    assert not torch.equal(did.loss, losses[1])
    assert not torch.equal(cut[0].first.weight, whole[0].first.weight)


@pytest.mark.parametrize("parts", [2, 5, ROWS])
def test_microbatches_give_the_whole_batch_to_rounding(parts: int) -> None:
    """Also where they are not of one size."""
    cut, whole = _players(), _players()
    ours, other = _optimizer(*cut, "sgd"), _optimizer(*whole, "sgd")
    for number in range(3):
        did = sf.alternating_step(
            *cut, F.cross_entropy, ours, *_data(number), 2, microbatches=parts
        )
        expected = sf.alternating_step(*whole, F.cross_entropy, other, *_data(number), 2)
        torch.testing.assert_close(did.loss, expected.loss)
        torch.testing.assert_close(did.head_losses, expected.head_losses)
    for p, q in zip(all_of(cut), all_of(whole), strict=True):
        torch.testing.assert_close(p, q)


class Nested(nn.Module):
    """A body that takes and returns tensors in a nest, one of which no gradient goes through."""

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

    optimizer = _optimizer(body, linear)
    inputs, targets = _data(0)
    before = [p.detach().clone() for p in all_of((body, linear))]
    batch = {"x": inputs, "mask": torch.ones(ROWS, 1)}
    for parts in (1, 3):
        sf.alternating_step(
            body, head, F.cross_entropy, optimizer, batch, targets, microbatches=parts
        )
    assert not any(torch.equal(p, q) for p, q in zip(all_of((body, linear)), before, strict=True))


def test_gradients_are_left_alone_where_that_is_asked_for() -> None:
    body, head = _players()
    optimizer = _optimizer(body, head, "sgd")
    inputs, targets = _data(0)
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
    """Torch keeps the cast of a weight until the region is left."""
    cut, whole = _players(), _players()
    ours, by_hand = _optimizer(*cut, "sgd", lr=0.3), _optimizer(*whole, "sgd", lr=0.3)
    for number in range(3):
        inputs, targets = _data(number)
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
    _assert_same(cut, whole)


def test_mode_alternating_inside_one_autocast_region() -> None:
    cut, whole = _players(), _players()
    ours = _optimizer(*cut, "sgd", lr=0.3, mode="alternating")
    by_hand = _optimizer(*whole, "sgd", lr=0.3)
    inputs, targets = _data(0)

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
    _assert_same(cut, whole)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_an_exact_head(loss: str, parts: int) -> None:
    """The body moves by the gradient of Phi itself; the head is where no other head does better."""
    pytest.importorskip("scipy")
    body, head = _players()
    optimizer = _optimizer(body, head, "sgd")
    inputs, targets = _data(0)
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
    ridge = 0.005 * sum(float(p.square().sum()) for p in head.parameters())
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
    body, head = _players()
    inputs, targets = _data(0)
    arguments = {
        "body": body,
        "head": head,
        "loss_fn": F.cross_entropy,
        "optimizer": _optimizer(body, head),
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
    body, head = _players()
    with pytest.raises(ValueError, match="unknown mode 'both'"):
        _optimizer(body, head, mode="both")
    optimizer = _optimizer(body, head, mode="alternating")
    with pytest.raises(ValueError, match="needs a closure"):
        optimizer.step()
    F.cross_entropy(head(body(_data(0)[0])), _data(0)[1]).backward()
    optimizer.step(role="head")  # by hand


def test_groups_that_change_sides_are_noticed() -> None:
    body, head = _players()
    optimizer = _optimizer(body, head)
    sf.alternating_step(body, head, F.cross_entropy, optimizer, *_data(0))
    extra = nn.Linear(7, 4)
    optimizer.add_param_group({"params": extra.parameters()})
    with pytest.raises(ValueError, match="is in a param group of role 'body'"):
        sf.alternating_step(body, extra, F.cross_entropy, optimizer, *_data(0))


def test_a_head_that_begins_in_place() -> None:
    """Also with an operation that gives something else when it is done twice."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(7, 4)

        def forward(self, features: Tensor) -> Tensor:
            return self.linear(features.mul_(0.5).relu_())

    body, head = _players()[0][:3], Scaled()
    twins = copy.deepcopy((body, head))
    ours, by_hand = _optimizer(body, head, "sgd"), _optimizer(*twins, "sgd")
    inputs, targets = _data(0)
    sf.alternating_step(body, head, F.cross_entropy, ours, inputs, targets, 2)
    _by_hand(twins[0], twins[1], by_hand, inputs, targets, 2)
    for p, q in zip(all_of((body, head)), all_of(twins), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("grads", ["gather", "flat"])
def test_a_weight_that_the_head_shares_unseen_is_refused(grads: str) -> None:
    """In a callable nobody sees parameters: their gradients are what tells."""
    body, head = _players()
    optimizer = _optimizer(body, head, grads=grads)
    before = [p.detach().clone() for p in all_of((body, head))]
    inputs, targets = _data(0)
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


def test_a_head_without_use_for_the_features_is_noticed() -> None:
    body, head = _players()
    with pytest.raises(RuntimeError, match="does not depend on what the body returned"):
        sf.alternating_step(
            body, lambda z: head(z.detach()), F.cross_entropy, _optimizer(body, head), *_data(0)
        )


def test_mode_alternating_needs_both_players() -> None:
    head = nn.Parameter(torch.ones(3))
    ours = sf.StackelbergSGD([{"params": [head], "role": "head"}], mode="alternating")
    with pytest.raises(ValueError, match="no param group has role 'body'"):
        ours.step(lambda: head.sum().backward())
    assert head.tolist() == [1.0] * 3


@pytest.mark.parametrize("what", ["constraint", "ema", "frozen", "targets", "parametrized"])
def test_what_an_exact_head_refuses(what: str) -> None:
    body, head = _players()
    inputs, targets = _data(0)[0], normal((ROWS, 4), 3)
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
    optimizer = _optimizer(body, head, **more)
    before = [p.detach().clone() for p in all_of((body, head))]
    with pytest.raises((ValueError, TypeError)):
        sf.alternating_step(body, head, F.mse_loss, optimizer, inputs, targets, "exact", ridge=0.1)
    for p, old in zip(all_of((body, head)), before, strict=True):
        assert_same_bits(p.detach(), old)
