"""Groups of models of transformers that are made in an unusual order, or have unusual parameters."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

import stackelberg_fused as sf

pytestmark = pytest.mark.slow
LAYERS = 3

# class, powers of the decay by the end of a parameter's name: 0 after the blocks, LAYERS + 1 for embeddings
POWERS: dict[str, dict[str, int]] = {
    # nothing comes after its blocks but the tied embedding: the last of them has the highest rate
    "BartForCausalLM": {"layernorm_embedding.weight": 3, "layers.2.fc1.weight": 0},
    "Lfm2ForCausalLM": {"embedding_norm.weight": 0, "embed_tokens.weight": 4},
    "DINOv3ViTModel": {"embeddings.cls_token": 4, "patch_embeddings.weight": 4, "norm.weight": 0},
    "NomicBertForSequenceClassification": {"pooler.dense.weight": 0, "classifier.weight": 0},
    "ElectraForSequenceClassification": {"embeddings_project.weight": 4, "out_proj.weight": 0},
    "HubertForSequenceClassification": {"masked_spec_embed": 4, "projector.weight": 0},
    "GPTNeoXForCausalLM": {"embed_in.weight": 4, "lm_head.weight": 0},
}
KINDS: dict[str, dict[str, str]] = {
    "MambaForCausalLM": {".A_log": "vector", ".D": "vector", "embeddings.weight": "embedding"},
    "GptOssForCausalLM": {
        "gate_up_proj": "matrix",
        "gate_up_proj_bias": "vector",
        "sinks": "vector",
    },
    "BeitForImageClassification": {
        "cls_token": "embedding",
        "lambda_1": "vector",
    },
    "DonutSwinForImageClassification": {"relative_position_bias_table": "embedding"},
    "Swinv2ForImageClassification": {"logit_scale": "vector"},
    "XLNetLMHeadModel": {"r_w_bias": "vector", "rel_attn.q": "matrix"},
    "Wav2Vec2ForSequenceClassification": {"original0": "vector", "original1": "matrix"},
    "ViTForImageClassification": {"position_embeddings": "embedding"},
}


def _model(name: str) -> Any:
    """A model of few layers without memory."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers, which is not installed")
    import transformers

    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"this version of transformers has no {name}")
    config = kind.config_class()
    for count in ("num_hidden_layers", "n_layer", "encoder_layers", "decoder_layers"):
        if isinstance(getattr(config, count, None), int):
            setattr(config, count, LAYERS)
    if vars(config).get("layer_types"):
        config.layer_types = config.layer_types[:LAYERS]
    with torch.device("meta"):
        return kind(config)


@pytest.mark.parametrize("name", POWERS)
def test_layers(name: str) -> None:
    model = _model(name)
    rates = {n: g["lr"] for g in sf.layerwise_lr_decay(model, 0.5, lr=1.0) for n, _ in g["params"]}
    assert rates.keys() == {n for n, _ in model.named_parameters()}
    for end, power in POWERS[name].items():
        found = {rate for n, rate in rates.items() if n.endswith(end)}
        assert found == {0.5**power}, end


@pytest.mark.parametrize("name", KINDS)
def test_kinds_and_decay(name: str) -> None:
    model = _model(name)
    kinds = {n: g["name"] for g in sf.kinds(model) for n, _ in g["params"]}
    groups = sf.decay_by_module(model, 0.1)
    decayed = {n for g in groups if g["weight_decay"] for n, _ in g["params"]}
    for end, kind in KINDS[name].items():
        names = [n for n in kinds if n.endswith(end)]
        assert {kinds[n] for n in names} == {kind}, end
    tied = {n for n in kinds if kinds[n] == "embedding"} & decayed
    assert len(tied) <= 1  # with the last layer
    for n in kinds.keys() - tied:
        assert kinds[n] == "head" or (n in decayed) == (kinds[n] == "matrix"), n
