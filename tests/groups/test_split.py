"""Who is body and who is head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tolerances import HOST_SCALAR
from torch import nn

import stackelberg_fused as sf


class Net(nn.Module):
    """A small model whose last layer has a given name."""

    def __init__(self, head: str = "lm_head") -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        setattr(self, head, nn.Linear(4, 5, bias=False))


def _names(groups: list[dict[str, Any]]) -> list[list[str]]:
    return [[name for name, _ in group["params"]] for group in groups]


BODY = ["embed.weight", "block.0.weight", "block.0.bias", "block.1.weight", "block.1.bias"]


@pytest.mark.parametrize(
    "head",
    [
        lambda m: "lm_head",
        lambda m: "lm_head.weight",
        lambda m: m.lm_head,
        lambda m: ["lm_head"],
        lambda m: (m.lm_head, "lm_head.weight"),
        lambda m: lambda name, p: name.startswith("lm_head"),
        lambda m: None,
    ],
    ids=["name", "parameter", "module", "list", "mixed", "predicate", "detected"],
)
def test_head_by(head: Any) -> None:
    model = Net()
    groups = sf.split_body_head(model, head(model))
    assert [group["role"] for group in groups] == ["body", "head"]
    assert _names(groups) == [BODY, ["lm_head.weight"]]
    assert all(p is dict(model.named_parameters())[n] for g in groups for n, p in g["params"])
    optimizer = sf.StackelbergAdamW(groups, lr=1e-3)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(1e-2, rel=HOST_SCALAR)


def test_a_list_of_several() -> None:
    groups = sf.split_body_head(Net(), ["lm_head", "block.1"])
    assert _names(groups) == [BODY[:3], ["block.1.weight", "block.1.bias", "lm_head.weight"]]


@pytest.mark.parametrize("name", ["score", "classifier", "fc", "head", "output", "policy_head"])
def test_detection_by_usual_names(name: str) -> None:
    assert _names(sf.split_body_head(Net(name)))[1] == [f"{name}.weight"]


def test_output_embeddings_come_first() -> None:
    class Transformer(Net):
        def get_output_embeddings(self) -> nn.Module:
            return self.unusual

    assert _names(sf.split_body_head(Transformer("unusual")))[1] == ["unusual.weight"]


def test_output_embeddings_may_be_none() -> None:
    class Encoder(Net):
        def get_output_embeddings(self) -> None:
            return None

    assert _names(sf.split_body_head(Encoder("classifier")))[1] == ["classifier.weight"]


def test_nothing_detected_lists_the_candidates() -> None:
    with pytest.raises(
        ValueError, match=r"could not be detected.*'block\.0', 'block\.1', 'unusual'"
    ):
        sf.split_body_head(Net("unusual"))
    with pytest.raises(ValueError, match="no layers with parameters"):
        sf.split_body_head(nn.ReLU())


def test_several_usual_names_are_not_guessed_between() -> None:
    model = nn.ModuleDict(
        {name: nn.Linear(2, 2) for name in ("trunk", "policy_head", "value_head")}
    )
    with pytest.raises(ValueError, match=r"\('policy_head', 'value_head' all have a usual name\)"):
        sf.split_body_head(model)
    assert len(sf.split_body_head(model, ["policy_head", "value_head"])[1]["params"]) == 4


def test_what_is_no_model_or_no_head_is_named_by_its_type() -> None:
    with pytest.raises(TypeError, match=r"needs the model, .* got generator"):
        sf.split_body_head(Net().parameters())
    with pytest.raises(TypeError, match="got Parameter"):
        sf.split_body_head(Net(), Net().lm_head.weight)


def test_no_decay() -> None:
    groups = sf.split_body_head(Net(), no_decay=True)
    assert _names(groups) == [["embed.weight", "block.0.weight"], BODY[2:], ["lm_head.weight"]]
    assert [g.get("weight_decay") for g in groups] == [None, 0.0, None]
    optimizer = sf.StackelbergAdamW(groups, weight_decay=0.1)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0, 0.1]


def _tied() -> Net:
    model = Net()
    model.lm_head.weight = model.embed.weight
    return model


def test_tied_weights_need_a_decision() -> None:
    with pytest.raises(
        ValueError, match=r"embed\.weight = lm_head\.weight.*tied='head'.*tied='body'"
    ):
        sf.split_body_head(_tied(), "lm_head")
    assert _names(sf.split_body_head(_tied(), "lm_head", tied="head")) == [
        BODY[1:],
        ["embed.weight"],
    ]
    with pytest.raises(ValueError, match="the head is empty"):
        sf.split_body_head(_tied(), "lm_head", tied="body")
    groups = sf.split_body_head(_tied(), ["lm_head", "block.1"], tied="body")
    assert _names(groups) == [BODY[:3], BODY[3:]]


def test_weights_tied_within_the_head_are_no_conflict() -> None:
    model = Net()
    model.heads = nn.ModuleList([model.lm_head, nn.Linear(4, 5, bias=False)])
    model.heads[1].weight = model.lm_head.weight
    groups = sf.split_body_head(model, ["heads", "lm_head"])
    assert _names(groups) == [BODY, ["lm_head.weight"]]


def test_weights_tied_within_the_body_are_no_conflict() -> None:
    model = Net()
    model.block.append(nn.Embedding(5, 4))
    model.block[2].weight = model.embed.weight
    assert _names(sf.split_body_head(model)) == [BODY, ["lm_head.weight"]]


def test_frozen_parameters_are_dealt_out_too() -> None:
    model = Net()
    model.embed.requires_grad_(False)
    assert _names(sf.split_body_head(model)) == [BODY, ["lm_head.weight"]]


@pytest.mark.parametrize(
    "head, error, match",
    [
        ("nope", ValueError, "no module or parameter named 'nope'.*'lm_head'"),
        ("", ValueError, "no module or parameter named ''"),
        (["lm_head", "nope"], ValueError, "'nope'"),
        ([], ValueError, "the head is empty"),
        (nn.Linear(1, 1), ValueError, "Linear is not a module of the model"),
        (lambda name, p: False, ValueError, "the head is empty"),
        (lambda name, p: True, ValueError, "the body is empty"),
        ([3], TypeError, "got int"),
        (3, TypeError, "got int"),
    ],
)
def test_heads_that_cannot_be(head: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        sf.split_body_head(Net(), head)


def test_unknown_decision_about_ties() -> None:
    with pytest.raises(ValueError, match="tied must be 'error', 'head' or 'body', got 'both'"):
        sf.split_body_head(Net(), tied="both")


def test_the_whole_model_as_its_own_head_leaves_no_body() -> None:
    model = Net()
    with pytest.raises(ValueError, match="the body is empty"):
        sf.split_body_head(model, model)


def test_the_model_is_left_as_it_was() -> None:
    model = Net()
    before = {n: (p, p.data_ptr()) for n, p in model.named_parameters()}
    sf.split_body_head(model, no_decay=True)
    assert {n: (p, p.data_ptr()) for n, p in model.named_parameters()} == before
    assert not any(p.grad is not None for p in model.parameters())
    assert torch.is_grad_enabled()


def test_a_predicate_is_asked_about_every_name() -> None:
    groups = sf.split_body_head(_tied(), lambda name, p: name == "lm_head.weight", tied="head")
    assert _names(groups)[1] == ["embed.weight"]


def test_a_layer_under_two_names() -> None:
    model = Net()
    model.block.append(model.lm_head)
    assert _names(sf.split_body_head(model, model.lm_head))[1] == ["block.2.weight"]
    with pytest.raises(ValueError, match=r"block\.2\.weight = lm_head\.weight"):
        sf.split_body_head(model, "lm_head")


def test_shapes_that_a_lazy_module_has_not_yet() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"no_decay=True asks for the shape of '0.weight'"):
        sf.split_body_head(model, head="1", no_decay=True)
    body, head = sf.split_body_head(model, head="1")
    assert [name for name, _ in body["params"]] == ["0.weight", "0.bias"]
    assert [name for name, _ in head["params"]] == ["1.weight", "1.bias"]
