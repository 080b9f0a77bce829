"""Weight decay by the type of the module that holds a parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import GPT, ViT
from torch import nn

import stackelberg_fused as sf


def _spared(groups: list[dict[str, Any]]) -> set[str]:
    return {n for g in groups if g["weight_decay"] == 0.0 for n, _ in g["params"]}


def test_norms_embeddings_and_biases_are_spared() -> None:
    model = GPT(tied=False)
    decayed, spared = sf.decay_by_module(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert all(
        n.endswith(("up.weight", "down.weight", "lm_head.weight")) for n, _ in decayed["params"]
    )
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_a_tied_embedding_is_a_matrix() -> None:
    assert "transformer.wte.weight" not in _spared(sf.decay_by_module(GPT(tied=True), 0.1))


def test_names_mean_nothing() -> None:
    """A matrix of a layer that is called a norm is decayed; a scale that has another name is not."""
    model = nn.ModuleDict({"norm": nn.Linear(3, 3), "scale": nn.RMSNorm(3)})
    assert _spared(sf.decay_by_module(model, 0.1)) == {"norm.bias", "scale.weight"}


class OwnRMSNorm(nn.Module):
    """As libraries have their own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


def test_norms_of_libraries_and_biases_of_all_names() -> None:
    model = nn.ModuleDict(
        {"own": OwnRMSNorm(), "a": nn.MultiheadAttention(4, 2), "r": nn.GRU(2, 2)}
    )
    expected = {n for n, _ in model.named_parameters() if "bias" in n} | {"own.weight"}
    assert _spared(sf.decay_by_module(model, 0.1)) == expected
    assert _spared(sf.decay_by_module(model, 0.1, exempt=(nn.GRU,))) == {
        n for n, _ in model.named_parameters() if n.startswith("r.") or "bias" in n
    }


def test_what_a_model_exempts_itself() -> None:
    model = ViT()
    assert {"cls_token", "pos_embed"} <= _spared(sf.decay_by_module(model, 0.1))
    model.head.weight._no_weight_decay = True  # type: ignore[assignment]
    wrapped = sf.decay_by_module(nn.DataParallel(model), 0.1)
    assert {f"module.{name}" for name in ("cls_token", "pos_embed", "head.weight")} <= _spared(
        wrapped
    )


def test_biases_too() -> None:
    assert not any("up.bias" in n for n in _spared(sf.decay_by_module(GPT(), 0.1, biases=True)))


def test_on_top_of_other_groups() -> None:
    model = ViT()
    before = sf.layerwise_lr_decay(model, 0.5, lr=1.0)
    groups = sf.decay_by_module(model, 0.1, before)
    sf.StackelbergAdamW(sf.decay_by_module(model, 0.1, before))
    rates = {name: group["lr"] for group in before for name, _ in group["params"]}
    assert {name: group["lr"] for group in groups for name, _ in group["params"]} == rates
    assert all("weight_decay" not in group for group in before)
    kept = sf.decay_by_module(
        model, 0.1, [{"params": list(model.parameters()), "weight_decay": 0.3}]
    )
    assert [group["weight_decay"] for group in kept] == [0.3, 0.0]
    alone = sf.decay_by_module(model, 0.1, [{"params": model.head.weight}])
    assert alone == [{"params": [model.head.weight], "weight_decay": 0.1}]


def test_parameters_of_another_model() -> None:
    with pytest.raises(ValueError, match=r"param group 0 holds a parameter of shape \(4, 8\)"):
        sf.decay_by_module(GPT(), 0.1, [{"params": [ViT().head.weight]}])


class OwnRMSNormGated(OwnRMSNorm):
    """As Mamba 2 has one."""


class NormalPolicy(nn.Module):
    """No norm, for all its name."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.zeros(2, 3))


def test_norms_whose_class_has_more_in_its_name() -> None:
    model = nn.ModuleDict({"gated": OwnRMSNormGated(), "policy": NormalPolicy()})
    assert _spared(sf.decay_by_module(model, 0.1)) == {"gated.weight"}


class Same(nn.Module):
    """A parametrization."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_what_is_parametrized_is_what_it_computes() -> None:
    model = nn.ModuleDict(
        {"table": nn.Embedding(3, 4), "norm": nn.LayerNorm(4), "last": nn.Linear(4, 2)}
    )
    for name, tensor in (
        ("table", "weight"),
        ("norm", "weight"),
        ("last", "bias"),
        ("last", "weight"),
    ):
        nn.utils.parametrize.register_parametrization(model[name], tensor, Same())
    spared = _spared(sf.decay_by_module(model, 0.1))
    assert {n for n, _ in model.named_parameters()} - spared == {
        "last.parametrizations.weight.original"
    }
    embeddings, *_ = sf.kinds(model, head="last")
    assert [n for n, _ in embeddings["params"]] == ["table.parametrizations.weight.original"]


def test_groups_with_iterators_keep_their_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    groups = [{"params": layer.parameters()} for layer in model]
    assert sum(len(g["params"]) for g in sf.decay_by_module(model, 0.1, groups)) == 4
    assert [len(list(g["params"])) for g in groups] == [2, 2]


def test_of_a_lazy_module() -> None:
    with pytest.raises(ValueError, match=r"shape of '0\.weight', .* run the\s+model once before"):
        sf.decay_by_module(nn.Sequential(nn.LazyLinear(3)), 0.1)


def test_groups_of_an_optimizer_keep_their_names() -> None:
    model = GPT(tied=False)
    for make in (sf.StackelbergAdamW, torch.optim.AdamW):
        given = make(model.named_parameters(), lr=0.1, weight_decay=0.2)
        groups = sf.decay_by_module(model, 0.1, given.param_groups)
        assert [group["weight_decay"] for group in groups] == [0.2, 0.0]
        named = {n: p for g in groups for n, p in zip(g["param_names"], g["params"], strict=True)}
        assert all(named[name] is param for name, param in model.named_parameters())
        assert len(make(groups).param_groups) == 2


def test_what_a_backbone_exempts() -> None:
    model = nn.ModuleDict({"backbone": ViT(), "own": nn.Linear(4, 2)})
    names = {"backbone.cls_token", "backbone.pos_embed"}
    assert names <= _spared(sf.decay_by_module(model, 0.1))


def test_refused() -> None:
    cases: list[tuple[dict[str, Any], Any, str]] = [
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be >= 0, got -0.1"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay must be >= 0, got nan"),
        ({"weight_decay": "0.1"}, TypeError, "weight_decay must be a number, got '0.1'"),
        ({"exempt": ("LayerNorm",)}, TypeError, "exempt must be types of modules in a tuple"),
        ({"groups": {"params": []}}, TypeError, "param groups are dicts in a list, got dict"),
        ({"groups": [{"lr": 0.1}]}, TypeError, "param group 0 has no 'params'"),
        ({"groups": [torch.ones(2)]}, TypeError, "param group 0 must be a dict, got Tensor"),
    ]
    for given, error, message in cases:
        with pytest.raises(error, match=message):
            sf.decay_by_module(ViT(), **{"weight_decay": 0.1, **given})


def test_types_in_a_list_or_alone() -> None:
    for exempt in ([nn.LayerNorm], nn.LayerNorm):
        assert _spared(sf.decay_by_module(ViT(), 0.1, exempt=exempt))  # type: ignore[arg-type]
