"""What parameters are for: `kinds` and `decay_by_module` judge alike, as is published."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import WIDTH, Block
from torch import nn
from torch.nn.utils import parametrizations

import stackelberg_fused as sf


class Own(nn.Module):
    """Parameters of a module itself, by name and shape."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.ones(shape)))


TABLES: dict[str, tuple[int, ...]] = {
    # of timm, open_clip, torchvision, Swin, LeViT, SAM, TNT, Hiera, minGPT, SigLIP, Perceiver
    "pos_embed": (1, 5, 8),
    "pos_embed_window": (1, 8, 2, 2),
    "positional_embedding": (5, 8),
    "pos_embedding": (1, 5, 8),
    "pos_emb": (1, 5, 8),
    "cls_token": (1, 1, 8),
    "reg_token": (1, 4, 8),
    "register_tokens": (4, 8),
    "cls_token1": (1, 1, 8),
    "class_embedding": (8,),
    "mask_token": (1, 8),
    "relative_position_bias_table": (9, 2),
    "attention_biases": (2, 9),
    "relative_attention_bias": (32, 2),
    "position_bias": (2, 9),
    "rel_pos_h": (27, 8),
    "patch_pos": (1, 5, 8),
    "position_embedding_table": (2, 9, 8),
    "positional_encoding": (5, 8),
    "probe": (1, 1, 8),
    "latents": (16, 8),
}
VECTORS: dict[str, tuple[int, ...]] = {
    # LayerScale's of timm, torchvision, CaiT, transformers
    "gamma": (8,),
    "gamma_1": (8,),
    "layer_scale": (8, 1, 1),
    "layer_scale_parameter": (8,),
    # GRN of ConvNeXt 2, XCiT, Swin 2, RWKV, Snake
    "beta": (1, 1, 1, 8),
    "temperature": (2, 1, 1),
    "logit_scale": (2, 1, 1),
    "time_mix_key": (1, 1, 8),
    "alpha": (1, 8, 1),
    # Mamba, VMamba, S4, RWKV
    "A_log": (8, 4),
    "A_logs": (8, 4),
    "D": (8,),
    "Ds": (8,),
    "dt_bias": (8,),
    "A_imag": (8, 4),
    "time_decay": (2, 4),
    # a bias for each head or expert: Transformer-XL, GPT-OSS, RecurrentGemma
    "r_w_bias": (2, 4),
    "pos_bias_u": (2, 4),
    "down_proj_bias": (3, 8),
    "input_gate_bias": (2, 4),
    "log_std": (3,),
}
MATRICES: dict[str, tuple[int, ...]] = {
    # experts of Mixtral; open_clip; LoRA by hand; attention; a layer with one output
    "gate_up_proj": (3, 16, 8),
    "proj": (8, 4),
    "A": (8, 2),
    "in_proj_weight": (24, 8),
    "weight": (1, 8),
    "pos_proj": (8, 8),
    "mm_input_projection_weight": (8, 8),
}
KINDS = {"embedding": TABLES, "vector": VECTORS, "matrix": MATRICES}


def _judged(model: nn.Module, **options: Any) -> dict[str, tuple[str, bool]]:
    """By the name of a parameter: its kind, and whether it is decayed."""
    kinds = {n: g["name"] for g in sf.kinds(model) for n, _ in g["params"]}
    decay = {
        n: bool(g["weight_decay"])
        for g in sf.decay_by_module(model, 0.1, **options)
        for n, _ in g["params"]
    }
    assert kinds.keys() == decay.keys() == {n for n, _ in model.named_parameters()}
    return {name: (kinds[name], decay[name]) for name in kinds}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_a_module_itself(kind: str) -> None:
    found = _judged(nn.ModuleDict({"part": Own(**KINDS[kind]), "layer": nn.Linear(3, 3)}))
    expected = (kind, kind == "matrix")
    odd = {n: judged for n, judged in found.items() if "part" in n and judged != expected}
    assert not odd


def test_in_lists_and_dicts_of_parameters() -> None:
    model = nn.Module()
    model.pos_embeds = nn.ParameterList(nn.Parameter(torch.ones(5, 8)) for _ in range(2))
    model.layer_scale = nn.ParameterDict({"a": nn.Parameter(torch.ones(8, 1, 1))})
    model.experts = nn.ParameterList(nn.Parameter(torch.ones(8, 8)) for _ in range(2))
    found = _judged(model)
    assert found["pos_embeds.1"] == ("embedding", False)
    assert found["layer_scale.a"] == ("vector", False)
    assert found["experts.0"] == ("matrix", True)


def test_biases_that_are_called_b() -> None:
    part = Own(w1=(3, 8, 16), b1=(3, 16), W_in=(3, 8, 8), b_in=(3, 8), basis=(3, 8))
    found = _judged(nn.ModuleDict({"part": part, "layer": nn.Linear(3, 3)}))
    assert {n for n, (kind, _) in found.items() if kind == "vector"} == {
        *("part.b1", "part.b_in", "layer.bias")
    }


def _legacy_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer)


NORMED: dict[str, tuple[Any, str, str]] = {
    "weight_norm": (
        lambda: parametrizations.weight_norm(nn.Linear(8, 4)),
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ),
    "weight_norm of kernels": (
        lambda: parametrizations.weight_norm(nn.Conv1d(8, 4, 3), dim=2),
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ),
    "weight_norm to one": (
        lambda: parametrizations.weight_norm(nn.Linear(8, 1)),
        "parametrizations.weight.original0",
        "parametrizations.weight.original1",
    ),
    "weight_norm of old": (lambda: _legacy_norm(nn.Linear(8, 1)), "weight_g", "weight_v"),
    "spectral_norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(8, 1)),
        "bias",
        "parametrizations.weight.original",
    ),
    "spectral_norm of old": (
        lambda: nn.utils.spectral_norm(nn.Linear(8, 1)),
        "bias",
        "weight_orig",
    ),
    "orthogonal": (
        lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
        "bias",
        "parametrizations.weight.original",
    ),
}


def test_parametrized_weights() -> None:
    for name, (make, vector, matrix) in NORMED.items():
        found = _judged(nn.ModuleDict({"a": make(), "b": nn.Linear(3, 3)}))
        assert found[f"a.{vector}"] == ("vector", False), name
        assert found[f"a.{matrix}"] == ("matrix", True), name
        assert found["a.bias"] == ("vector", False), name


class Swin(nn.Module):
    """Says itself what is not decayed, by name, pattern, and part of a name."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def no_weight_decay(self) -> set[str]:
        return {"blocks.*.up.weight"}

    def no_weight_decay_keywords(self) -> set[str]:
        return {"down"}


def test_what_a_model_exempts_by_patterns_and_keywords() -> None:
    found = _judged(nn.ModuleDict({"downsampled": Swin(), "down": nn.Linear(3, 3)}))
    decayed = {n for n, (_, is_decayed) in found.items() if is_decayed}
    assert decayed == {"downsampled.proj.weight", "down.weight"}


def test_types_that_are_given_decide() -> None:
    parts = {"own": Own(gamma=(8,), pos_embed=(5, 8)), "norm": nn.LayerNorm(8)}
    model = nn.ModuleDict({**parts, "table": nn.Embedding(3, 8)})
    found = _judged(model, exempt=(nn.LayerNorm,))  # as nanoGPT: tables are decayed
    assert {n for n, (_, d) in found.items() if d} == {"own.pos_embed", "table.weight"}
    found = _judged(model, exempt=(nn.Embedding,))
    assert {n for n, (_, d) in found.items() if d} == {"own.gamma", "norm.weight"}
    found = _judged(model, exempt=())
    assert {n for n, (_, d) in found.items() if not d} == {"norm.bias"}


def test_biases_on_request() -> None:
    model = nn.ModuleDict({"own": Own(down_proj_bias=(3, 8), gamma=(8,)), "l": nn.Linear(3, 3)})
    found = _judged(model, biases=True)
    assert {n for n, (_, d) in found.items() if not d} == {"own.gamma"}
