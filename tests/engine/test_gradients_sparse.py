"""Sparse gradients, as of `nn.Embedding(sparse=True)`: SGD steps with them as torch's does, the others refuse them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from checks import Snapshot, all_params, assert_same_bits
from tolerances import SEVERAL_STEPS
from torch import nn

import stackelberg_fused as sf

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "maximize": {"maximize": True},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.9, "dampening": 0.5},
    "nesterov": {"momentum": 0.9, "nesterov": True},
}
WORDS = [torch.tensor([1, 2, 2]), torch.tensor([4]), torch.tensor([2, 7, 1, 1])]


def _model(device: str = "cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 5, sparse=True), nn.Linear(5, 3)).to(device)


def _train(model: nn.Module, optimizer: Any, **how: Any) -> None:
    for words in WORDS:
        model(words.to(model[1].weight.device)).square().sum().backward()
        assert model[0].weight.grad.layout is torch.sparse_coo or "flat" in how
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", SETTINGS)
@by_backend
def test_as_torch(backend: str, name: str) -> None:
    instance, device = chosen(backend)
    model, twin = _model(device), _model(device)
    ours = sf.StackelbergSGD(model.parameters(), lr=0.1, backend=instance, **SETTINGS[name])
    torchs = torch.optim.SGD(twin.parameters(), lr=0.1, **SETTINGS[name])
    _train(model, ours)
    _train(twin, torchs)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)


@pytest.mark.parametrize(
    "more",
    [
        {"max_grad_norm": 0.5},
        {"update_every": 2, "update_every_grads": "mean"},
        {"ema_decay": 0.5, "constraint": sf.Box(-1.0, 1.0)},
        {"momentum": 0.9, "state_dtype": "8bit"},
        {"flatten": False},
    ],
    ids=str,
)
@by_backend
def test_as_the_same_gradients_that_are_dense(backend: str, more: dict[str, Any]) -> None:
    instance, device = chosen(backend)
    model, twin = _model(device), _model(device)
    twin[0].sparse = False
    ours, dense = (
        sf.StackelbergSGD(m.parameters(), lr=0.1, backend=instance, **more) for m in (model, twin)
    )
    for words in WORDS:
        twin(words.to(device)).square().sum().backward()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            is_embedding = p is model[0].weight
            p.grad = q.grad.to_sparse() if is_embedding else q.grad.clone()
        for optimizer in (ours, dense):
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_same_bits(p, q)


def test_a_parameter_whose_memory_has_gaps() -> None:
    whole = torch.ones(4, 6)
    p, q = nn.Parameter(whole[:, :3]), nn.Parameter(torch.ones(4, 3))
    grad = torch.diag(torch.arange(4.0))[:, :3]
    ours, twin = (sf.StackelbergSGD([x], lr=0.1, momentum=0.9) for x in (p, q))
    for _ in range(2):
        p.grad, q.grad = grad.to_sparse(), grad.clone()
        ours.step()
        twin.step()
    assert_same_bits(p, q)


def test_flat_gradients_take_them_up() -> None:
    model, twin = _model(), _model()
    ours = sf.StackelbergSGD(model.parameters(), lr=0.1, grads="flat")
    torchs = torch.optim.SGD(twin.parameters(), lr=0.1)
    for words in WORDS:
        for m, optimizer in ((model, ours), (twin, torchs)):
            m(words).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)
    model.zero_grad()
    model(WORDS[0]).sum().backward()
    ours.flat_grads  # noqa: B018  puts the sparse one in its place
    assert model[0].weight.grad.layout is torch.strided


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_state_dict_of_torch_with_sparse_momentum(backend: str) -> None:
    model, twin = _model(), _model()
    torchs = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    _train(twin, torchs)
    model.load_state_dict(twin.state_dict())
    ours = sf.StackelbergSGD(model.parameters(), lr=0.1, momentum=0.9, backend=backend)
    assert torchs.state[twin[0].weight]["momentum_buffer"].layout is torch.sparse_coo
    ours.load_state_dict(copy.deepcopy(torchs.state_dict()))
    _train(model, ours)
    _train(twin, torchs)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "adamw": ("adamw", {}, "sparse gradients go with rule 'sgd' only, not with 'adamw'"),
    "adam": ("adam", {}, "sparse gradients go with rule 'sgd' only"),
    "decay": ("sgd", {"weight_decay": 0.1}, "sparse gradients do not go with weight_decay"),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", REFUSED)
def test_where_torch_refuses_them_they_are_refused_by_name(name: str, backend: str) -> None:
    rule, settings, message = REFUSED[name]
    model = _model()
    group = {"params": list(model.named_parameters()), "rule": rule, **settings}
    ours = sf.StackelbergAdamW([group], lr=0.1, backend=backend, weight_decay=0.0)
    torchs = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[rule]
    model(WORDS[0]).sum().backward()
    before = Snapshot(ours, [model[1].weight.grad])
    with pytest.raises(RuntimeError, match=rf"parameter '0.weight' of param group 0 .*{message}"):
        ours.step()
    before.assert_unchanged()
    with pytest.raises(RuntimeError):
        torchs(all_params(ours), lr=0.1, **settings).step()
