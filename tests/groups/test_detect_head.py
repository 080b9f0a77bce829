"""The last layers of models whose user names none: wrapped ones, several heads, and what transformers calls them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.groups.detect_head import USUAL_HEADS

transformers: Any = None
with contextlib.suppress(ImportError):
    import transformers


def _linear() -> nn.Linear:
    return nn.Linear(3, 3)


class Model(nn.Module):
    """Layers by name, deeper ones with dots."""

    def __init__(self, *names: str, **attributes: Any) -> None:
        super().__init__()
        for name in names:
            *holders, last = name.split(".")
            holder: nn.Module = self
            for inner in holders:
                if not hasattr(holder, inner):
                    holder.add_module(inner, nn.Module())
                holder = getattr(holder, inner)
            holder.add_module(last, _linear())
        for name, value in attributes.items():
            setattr(self, name, value)


def _outputs(model: Model, name: str) -> Model:
    model.get_output_embeddings = lambda: model.get_submodule(name)
    return model


def _heads(model: nn.Module, **how: Any) -> list[str]:
    """Modules in the head, by the names of their weights."""
    body, head = sf.split_body_head(model, **how)
    assert len(body["params"]) + len(head["params"]) == len(list(model.parameters()))
    return [name.removesuffix(".weight") for name, p in head["params"] if p.dim() > 1]


class Wrapper(nn.Module):
    """As DistributedDataParallel: one child, other attributes are its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Adapted(nn.Module):
    """As PEFT's models: the model lies two levels deep, beside trained prompts."""

    def __init__(self, model: nn.Module, *, with_prompts: bool) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model
        self.get_base_model = lambda: model
        if with_prompts:
            self.prompts = _linear()


class Forwarding(Wrapper):
    """As a compiled module: it has every attribute of the model inside."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


WRAPPERS: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "none": (lambda m: m, ""),
    "of one child": (Wrapper, "module."),
    "DataParallel": (nn.DataParallel, "module."),
    "compiled": (torch.compile, "_orig_mod."),
    "forwarding": (Forwarding, "module."),
    "adapted": (lambda m: Adapted(m, with_prompts=False), "base_model.model."),
    "with prompts": (lambda m: Adapted(m, with_prompts=True), "base_model.model."),
    "several": (
        lambda m: Wrapper(nn.DataParallel(Adapted(m, with_prompts=True))),
        "module.module.base_model.model.",
    ),
}
MODELS: dict[str, tuple[Callable[[], Model], list[str]]] = {
    "usual name": (lambda: Model("trunk.0", "trunk.1", "classifier"), ["classifier"]),
    "beside a backbone": (
        lambda: Model("bert.0", "projector", "other", base_model_prefix="bert"),
        ["projector", "other"],
    ),
    "output embeddings": (
        lambda: _outputs(Model("trunk.0", "cls.transform", "cls.decoder"), "cls.decoder"),
        ["cls.decoder"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_through_wrappers(wrapper: str, name: str) -> None:
    wrap, path = WRAPPERS[wrapper]
    make, expected = MODELS[name]
    assert _heads(wrap(make())) == [f"{path}{head}" for head in expected]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_named_through_wrappers(wrapper: str) -> None:
    wrap, path = WRAPPERS[wrapper]
    model = Model("trunk.0", "deep.last")
    for head in ("deep.last", f"{path}deep.last", model.deep.last, ["deep.last.weight"]):
        assert _heads(wrap(model), head=head) == [f"{path}deep.last"]
    with pytest.raises(ValueError, match=r"named 'nope'.*deep\.last'"):
        sf.split_body_head(wrap(model), "nope")


def test_a_head_that_is_wrapped_itself() -> None:
    model = Model("trunk.0", "deep.last.0")
    assert _heads(model, head=Wrapper(model.deep)) == ["deep.last.0"]
    model.deep = torch.compile(model.deep)
    assert _heads(model, head="deep") == ["deep._orig_mod.last.0"]


@pytest.mark.parametrize("name", USUAL_HEADS)
def test_every_usual_name(name: str) -> None:
    assert _heads(Model("trunk.0", name)) == [name]
    assert _heads(Wrapper(Model(f"{name}.dense", f"{name}.out", "trunk.0"))) == [
        f"module.{name}.dense",
        f"module.{name}.out",
    ]


@pytest.mark.parametrize(
    "make, expected",
    [
        (  # GPT-2 with two heads
            lambda: _outputs(Model("trunk", "lm_head", "multiple_choice_head.summary"), "lm_head"),
            ["lm_head", "multiple_choice_head.summary"],
        ),
        (  # BERT as it is pretrained
            lambda: _outputs(
                Model(
                    "bert",
                    "cls.predictions.transform",
                    "cls.predictions.decoder",
                    "cls.seq_relationship",
                ),
                "cls.predictions.decoder",
            ),
            ["cls.predictions.decoder", "cls.seq_relationship"],
        ),
        (  # DeiT with a teacher
            lambda: Model("deit", "cls_classifier", "distillation_classifier"),
            ["cls_classifier", "distillation_classifier"],
        ),
        (
            lambda: Model("stem", "AuxLogits.conv", "AuxLogits.fc", "fc"),
            ["AuxLogits.conv", "AuxLogits.fc", "fc"],
        ),
        (lambda: Model("trunk", "head", "head_dist"), ["head", "head_dist"]),
        (  # a model of transformers that holds another one with heads
            lambda: Model(
                "mask_head",
                base_model_prefix="model",
                detr=Model("model", "class_labels", "boxes", base_model_prefix="model"),
            ),
            ["mask_head", "detr.class_labels", "detr.boxes"],
        ),
        (  # a model that makes speech from what another one says
            lambda: _outputs(
                Model(
                    "speech.x",
                    base_model_prefix="none",
                    thinker=Model("model", "lm_head", base_model_prefix="model"),
                    talker=Model("model", "codec_head", base_model_prefix="model"),
                ),
                "thinker.lm_head",
            ),
            ["thinker.lm_head", "talker.codec_head"],
        ),
        (lambda: Model("encoder", "score", "head", base_model_prefix="t5"), ["score", "head"]),
    ],
)
def test_several_heads(make: Callable[[], Model], expected: list[str]) -> None:
    assert _heads(make()) == expected


def test_parameters_beside_a_backbone() -> None:
    model = Model("tapas.0", "aggregation", base_model_prefix="tapas")
    model.output_weights = nn.Parameter(torch.ones(3, 1))
    assert _heads(model) == ["output_weights", "aggregation"]


def test_a_head_that_the_backbone_holds_too() -> None:
    model = Model("model.0", "boxes", base_model_prefix="model")
    model.model.decoder_boxes = model.boxes
    _, head = sf.split_body_head(model)
    assert {id(p) for _, p in head["params"]} == {id(p) for p in model.boxes.parameters()}


@pytest.mark.parametrize(
    "model",
    [
        Model("encoder.0", "pooler", base_model_prefix="bert"),  # the backbone itself
        Model("model.0", base_model_prefix="model"),
        Wrapper(Model("trunk.0", "unusual")),
        nn.Sequential(_linear(), _linear()),
    ],
)
def test_not_guessed(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"could not be detected.*no usual name"):
        sf.split_body_head(model)


def test_a_backbone_whose_blocks_have_the_name_of_one() -> None:
    """As DINOv3's: its embeddings lie beside them, and are no head."""
    model = Model("embeddings.patches", "model.0", "norm", base_model_prefix="model")
    model.get_input_embeddings = lambda: model.embeddings.patches
    with pytest.raises(ValueError, match="could not be detected"):
        sf.split_body_head(model)


def test_several_names_in_a_wrapper() -> None:
    with pytest.raises(ValueError, match="'policy_head', 'value_head' all have a usual name"):
        sf.split_body_head(Wrapper(Model("trunk", "policy_head", "value_head")))


def test_a_model_of_transformers_as_a_part() -> None:
    inner = Model("model.0", "lm_head", base_model_prefix="model")
    alone = Model(net=inner, scale=nn.Parameter(torch.ones(())))
    assert _heads(alone) == ["net.lm_head"]
    with pytest.raises(ValueError, match=r"'v_head', 'net\.lm_head' all have a usual name"):
        sf.split_body_head(Model("v_head", net=inner))


def test_a_getter_that_does_not_know() -> None:
    def fails() -> None:
        raise NotImplementedError

    assert _heads(Model("trunk.0", "score", get_output_embeddings=fails)) == ["score"]


def test_without_names() -> None:
    model = Model("trunk.0", "score")
    named = sf.split_body_head(model, no_decay=True)
    plain = sf.split_body_head(model, no_decay=True, named=False)
    for one, other in zip(named, plain, strict=True):
        assert [id(p) for _, p in one["params"]] == [id(p) for p in other["params"]]
        assert {**one, "params": None} == {**other, "params": None}
    optimizer = sf.StackelbergAdamW(sf.split_body_head(model, named=False), lr=0.1)
    assert "param_names" not in optimizer.param_groups[0]
    assert [group["role"] for group in optimizer.param_groups] == ["body", "head"]


def test_a_frozen_head_is_said() -> None:
    model = Model("trunk.0", "score")
    model.score.requires_grad_(False)
    with pytest.warns(
        UserWarning, match=r"head is frozen \('score.bias', 'score.weight'\)"
    ) as seen:
        sf.split_body_head(model)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    model.score.bias.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sf.split_body_head(model)


def _tied(bias: bool) -> Model:
    model = Model("trunk.0", "embed")
    model.lm_head = nn.Linear(3, 3, bias=bias)
    model.lm_head.weight = model.embed.weight
    return model


def test_a_tied_head_without_a_bias_has_nothing_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"pass tied='head' .*; it has no other weights, so that"):
        sf.split_body_head(_tied(False))
    with pytest.raises(ValueError, match=r"pass tied='head' .* or tied='body' \(the slow one\)$"):
        sf.split_body_head(_tied(True))
    with pytest.raises(ValueError, match="the head is empty: other layers share all of its"):
        sf.split_body_head(_tied(False), tied="body")
    assert [n for n, _ in sf.split_body_head(_tied(True), tied="body")[1]["params"]] == [
        "lm_head.bias"
    ]


# the first name of each is a class of transformers; then what its head must hold, and must not
CLASSES = [
    ("BertForSequenceClassification", ["classifier"], ["bert."]),
    ("BertForQuestionAnswering", ["qa_outputs"], ["bert."]),
    ("BertForNextSentencePrediction", ["cls.seq_relationship"], ["bert."]),
    ("BertForPreTraining", ["cls.predictions", "cls.seq_relationship"], ["bert.encoder"]),
    ("DistilBertForMaskedLM", ["vocab_projector"], ["distilbert.transformer"]),
    ("DistilBertForSequenceClassification", ["classifier"], ["distilbert."]),
    ("RobertaForSequenceClassification", ["classifier.out_proj"], ["roberta."]),
    ("ElectraForPreTraining", ["discriminator_predictions"], ["electra."]),
    ("BartForSequenceClassification", ["classification_head"], ["model."]),
    (
        "DeiTForImageClassificationWithTeacher",
        ["cls_classifier", "distillation_classifier"],
        ["deit."],
    ),
    ("ViTForImageClassification", ["classifier"], ["vit."]),
    ("GPT2DoubleHeadsModel", ["multiple_choice_head", "transformer.wte"], ["transformer.h."]),
    ("GPT2ForSequenceClassification", ["score"], ["transformer."]),
    ("LlamaForCausalLM", ["lm_head"], ["model.layers"]),
    ("T5ForConditionalGeneration", ["shared"], ["encoder.", "decoder."]),
    ("XLNetForQuestionAnswering", ["start_logits", "end_logits", "answer_class"], ["transformer."]),
    ("Wav2Vec2ForCTC", ["lm_head"], ["wav2vec2."]),
]


@pytest.mark.skipif(transformers is None, reason="transformers is not installed")
@pytest.mark.parametrize("name, inside, outside", CLASSES, ids=[name for name, *_ in CLASSES])
def test_classes_of_transformers(name: str, inside: list[str], outside: list[str]) -> None:
    kind = getattr(transformers, name)
    with torch.device("meta"):  # of the default size, without the memory
        model = kind(kind.config_class())
    _, head = sf.split_body_head(model, tied="head")
    names = [name for name, _ in head["params"]]
    for part in inside:
        assert any(name.startswith(part) for name in names), (part, names)
    for part in outside:
        assert not any(name.startswith(part) for name in names), (part, names)
