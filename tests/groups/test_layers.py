"""Rates that fall from layer to layer: which layers are found, and what each of them gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import BLOCKS, GPT, Bert, ViT
from torch import nn

import stackelberg_fused as sf


def _by_name(groups: list[dict[str, Any]]) -> dict[str, float]:
    return {name: group["lr"] for group in groups for name, _ in group["params"]}


def _part(name: str) -> str:
    """The layer that a parameter belongs to."""
    return name.rpartition(".")[0]


def _check(model: nn.Module, groups: list[dict[str, Any]], expected: dict[str, int]) -> None:
    """Rates of the beginnings of names, as powers of a half."""
    rates = _by_name(groups)
    assert rates.keys() == {name for name, _ in model.named_parameters()}
    for name, rate in rates.items():
        (power,) = (p for part, p in expected.items() if name.startswith(part))
        assert rate == 0.5**power, name
    torch.optim.AdamW(groups)
    sf.StackelbergAdamW(groups)


def test_gpt_with_tied_weights() -> None:
    model = GPT(tied=True)
    groups = sf.layerwise_lr_decay(model, 0.5, lr=1.0)
    assert BLOCKS == 3
    expected = {f"transformer.h.{i}": 3 - i for i in range(3)}
    expected |= {"transformer.wte": 4, "transformer.wpe": 4, "transformer.ln_f": 0}
    _check(model, groups, expected)
    assert [group["lr"] for group in groups] == sorted(group["lr"] for group in groups)


def test_gpt_with_a_head_of_its_own() -> None:
    model = GPT(tied=False)
    groups = sf.layerwise_lr_decay(model, 0.5, lr=1.0)
    heads = [group for group in groups if group["role"] == "head"]
    assert [name for group in heads for name, _ in group["params"]] == ["lm_head.weight"]
    assert _by_name(groups)["lm_head.weight"] == 1.0
    assert _by_name(groups)["transformer.wte.weight"] == 0.5**4


def test_vit() -> None:
    expected = {f"blocks.{i}": 3 - i for i in range(3)}
    expected |= {"cls_token": 4, "pos_embed": 4, "patch_embed": 4, "norm": 0, "head": 0}
    _check(ViT(), sf.layerwise_lr_decay(ViT(), 0.5, lr=1.0), expected)


def test_bert() -> None:
    expected = {f"bert.encoder.layer.{i}": 3 - i for i in range(3)}
    expected |= {"bert.embeddings": 4, "bert.encoder.relative": 4}
    expected |= {"bert.encoder.final_layer_norm": 0, "bert.pooler": 0, "classifier": 0}
    _check(Bert(), sf.layerwise_lr_decay(Bert(), 0.5, lr=1.0), expected)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrapped(wrap: Any) -> None:
    model = wrap(ViT())
    plain = list(_by_name(sf.layerwise_lr_decay(ViT(), 0.5, lr=1.0)).values())
    assert list(_by_name(sf.layerwise_lr_decay(model, 0.5, lr=1.0)).values()) == plain


def test_blocks_that_are_compiled() -> None:
    model = ViT()
    for i in range(BLOCKS):
        model.blocks[i] = torch.compile(model.blocks[i])
    rates = _by_name(sf.layerwise_lr_decay(model, 0.5, lr=1.0))
    assert rates["blocks.0._orig_mod.up.weight"] == 0.125


def test_vectors_without_decay() -> None:
    groups = sf.layerwise_lr_decay(ViT(), 0.5, lr=1.0, no_decay=True)
    for group in groups:
        is_vector = {p.dim() <= 1 for _, p in group["params"]}
        assert is_vector == {"weight_decay" in group}
        assert group.get("weight_decay", 0.0) == 0.0


def test_one_rate() -> None:
    assert {group["lr"] for group in sf.layerwise_lr_decay(ViT(), 1.0, lr=0.1)} == {0.1}


def test_layers_in_the_order_that_is_given() -> None:
    model = nn.Sequential()
    for name in ("stem", "middle", "top"):
        model.add_module(name, nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)))
    given: list[Any] = [
        ["stem", "middle", "top"],
        lambda name: ["stem", "middle", "top"].index(name.partition(".")[0]),
    ]
    for layers in given:
        groups = sf.layerwise_lr_decay(model, 0.5, lr=1.0, layers=layers, head="top")
        _check(model, groups, {"stem": 2, "middle": 1, "top": 0})
        assert [group["role"] for group in groups] == ["body", "body", "head"]
    # the innermost name counts
    groups = sf.layerwise_lr_decay(
        model, 0.5, lr=1.0, layers=["stem", "middle", "middle.1", "top"], head="top"
    )
    _check(model, groups, {"stem": 3, "middle.0": 2, "middle.1": 1, "top": 0})


def test_a_decay_outside() -> None:
    for decay in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"decay must be in \(0, 1\]"):
            sf.layerwise_lr_decay(ViT(), decay, lr=1.0)


def _encoder_and_decoder() -> nn.Module:
    return nn.ModuleDict({"encoder": ViT().blocks, "decoder": ViT().blocks, "out": nn.Linear(8, 8)})


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), {}, ValueError, "Stacks: none"),
        (_encoder_and_decoder, {}, ValueError, r"'encoder' \(3 blocks\), 'decoder' \(3 blocks\)"),
        (ViT, {"lr": -1.0}, ValueError, "lr must be >= 0"),
        (ViT, {"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
        (ViT, {"decay": None}, TypeError, "decay must be a number, got None"),
        (ViT, {"head": "top"}, ValueError, "no module or parameter named 'top'"),
        (ViT, {"layers": ["blocks", "norm"]}, ValueError, "'cls_token' is in none of the layers"),
        (ViT, {"layers": ["", "norm"]}, ValueError, "'cls_token' is in none of the layers"),
        (ViT, {"layers": lambda name: 0.5}, TypeError, "must be the depth, an integer, got 0.5"),
        (ViT, {"layers": "blocks"}, TypeError, "names of layers in their order or a function"),
        (lambda: ["a"], {}, TypeError, "must be an nn.Module"),
    ],
)
def test_refused_by_name(make: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        sf.layerwise_lr_decay(make(), **{"decay": 0.5, "lr": 1.0, **options})


def test_a_name_that_no_parameter_has() -> None:
    names = ["cls_token", "pos_embed", "patch_embed", "blocks", "norm", "head", "tail"]
    with pytest.raises(ValueError, match="no parameter is in the layer 'tail'"):
        sf.layerwise_lr_decay(ViT(), 0.5, lr=1.0, layers=names)


class OpenClip(nn.Module):
    """Open_clip's image tower: a last projection that is a parameter of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(5, 8))
        self.proj = nn.Parameter(torch.zeros(8, 4))
        self.transformer = nn.ModuleDict({"resblocks": ViT().blocks})
        self.ln_post = nn.LayerNorm(8)


def test_last_projections_that_are_made_first() -> None:
    rates = _by_name(sf.layerwise_lr_decay(OpenClip(), 0.5, lr=1.0))
    assert (rates["positional_embedding"], rates["proj"], rates["ln_post.weight"]) == (0.0625, 1, 1)
    opt = nn.Module()
    opt.decoder = nn.Module()
    opt.decoder.embed = nn.Embedding(3, 4)
    opt.decoder.project_out = nn.Linear(8, 4)
    opt.decoder.project_in = nn.Linear(4, 8)
    opt.decoder.layers = ViT().blocks
    opt.lm_head = nn.Linear(4, 3)
    rates = _by_name(sf.layerwise_lr_decay(opt, 0.5, lr=1.0))
    found = [rates[f"decoder.{name}.weight"] for name in ("project_in", "project_out")]
    assert found == [0.0625, 1.0]


def test_of_a_lazy_module() -> None:
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="a lazy module gives it on its first input"):
        sf.layerwise_lr_decay(lazy, 0.5, lr=1.0)
    with pytest.raises(ValueError, match="a lazy module gives it on its first input"):
        sf.layerwise_lr_decay(lazy, 0.5, lr=1.0, layers=["0", "1"], no_decay=True)
    assert len(sf.layerwise_lr_decay(lazy, 0.5, lr=1.0, layers=["0", "1"])) == 2
