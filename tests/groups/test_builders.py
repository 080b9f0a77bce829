"""Groups by patterns of names, and groups that are joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import GPT, ViT
from torch import nn

import stackelberg_fused as sf


def _names(group: dict[str, Any]) -> list[str]:
    return [name for name, _ in group["params"]]


def _is_taken_whole(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Every torch optimizer takes the groups, and each parameter is in one of them."""
    for optimizer in (torch.optim.AdamW(groups), sf.StackelbergAdamW(groups)):
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(held) == len(set(held))
        assert set(held) == {id(p) for p in model.parameters()}


def test_in_the_order_of_the_patterns() -> None:
    model = GPT()
    groups = sf.groups_by_pattern(
        model,
        {r"\.h\..*weight$": {"lr": 0.1}, "bias": {"weight_decay": 0.0}},
        default={"lr": 0.3, "role": "head"},
    )
    assert [{k: v for k, v in group.items() if k != "params"} for group in groups] == [
        {"lr": 0.1},
        {"weight_decay": 0.0},
        {"lr": 0.3, "role": "head"},
    ]
    assert all(".h." in name and name.endswith("weight") for name in _names(groups[0]))
    assert all("bias" in name for name in _names(groups[1]))
    assert _names(groups[2]) == [
        "transformer.wte.weight",
        "transformer.wpe.weight",
        "transformer.ln_f.weight",
    ]
    _is_taken_whole(model, groups)


def test_no_group_for_none() -> None:
    assert len(sf.groups_by_pattern(GPT(), {"": {}})) == 1
    (only,) = sf.groups_by_pattern(GPT(), {})
    assert "lr" not in only


def test_tied_weights_go_by_either_name() -> None:
    model = GPT(tied=True)
    groups = sf.groups_by_pattern(model, {"lm_head": {"lr": 1.0}})
    assert _names(groups[0]) == ["transformer.wte.weight"]
    _is_taken_whole(model, groups)
    with pytest.raises(
        ValueError,
        match=r"'transformer.wte.weight' = 'lm_head.weight' is matched by 'wte' and 'lm_",
    ):
        sf.groups_by_pattern(model, {"wte": {}, "lm_head": {}})


@pytest.mark.parametrize("wrapped", ["compiled", "parallel", "inside"])
def test_names_are_those_inside_of_wrappers(wrapped: str) -> None:
    model: Any = ViT()
    expected = [name for name, _ in model.named_parameters() if name.startswith("blocks.1")]
    if wrapped == "compiled":
        model = torch.compile(model)
    elif wrapped == "parallel":
        model = nn.DataParallel(model)
    else:
        model.blocks[1] = torch.compile(model.blocks[1])
    group, _ = sf.groups_by_pattern(model, {r"^blocks\.1\.[^_]": {"lr": 1.0}})
    assert len(group["params"]) == len(expected)
    known = dict(model.named_parameters())
    assert all(known[name] is p for name, p in group["params"])


@pytest.mark.parametrize(
    ("patterns", "default", "error", "message"),
    [
        ({"bias": {}, "decoder": {}}, None, ValueError, "'decoder' matches no .* 'transformer.wte"),
        ({r"h\.0": {}, "norm": {}}, None, ValueError, r"h\.0\.norm\.weight' is matched by"),
        ({"(": {}}, None, ValueError, r"'\(' is no regular expression"),
        ({"bias": 0.1}, None, TypeError, "pattern 'bias': settings must be a dict, got float"),
        ({"bias": {"params": []}}, None, TypeError, "pattern 'bias'.*'params'"),
        ({}, {"params": []}, TypeError, "default.*'params'"),
    ],
)
def test_refused_by_name(patterns: Any, default: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        sf.groups_by_pattern(GPT(), patterns, default)


def test_only_models_with_parameters() -> None:
    with pytest.raises(TypeError, match=r"must be an nn\.Module, got list"):
        sf.groups_by_pattern([nn.Parameter(torch.ones(1))], {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model has no parameters"):
        sf.groups_by_pattern(nn.ReLU(), {})


def test_equal_settings_are_one_group() -> None:
    a, b, c, d, e = (nn.Parameter(torch.ones(1)) for _ in range(5))
    rate = torch.tensor(0.1)
    groups = [
        {"params": [a], "lr": 0.1, "name": "a", "betas": (0.9, 0.99)},
        {"params": [b], "lr": 0.2},
        {"params": c, "lr": 0.1, "name": "c", "betas": (0.9, 0.99)},
        {"params": [d], "lr": rate},
        {"params": [e], "lr": rate},
    ]
    merged = sf.merge_equal(groups)
    assert [group["params"] for group in merged] == [[a, c], [b], [d, e]]
    assert merged[0]["name"] == "a, c"
    assert groups[0]["params"] == [a]
    assert groups[0]["name"] == "a"


def test_other_settings_are_other_groups() -> None:
    params = [nn.Parameter(torch.ones(1)) for _ in range(4)]
    values: list[Any] = [1, 1.0, torch.tensor(1.0), torch.tensor(1.0)]
    groups = [{"params": [p], "lr": value} for p, value in zip(params, values, strict=True)]
    assert len(sf.merge_equal(groups)) == 4
    by_key = [{"params": params[:1]}, {"params": params[1:2], "lr": 1.0}]
    assert len(sf.merge_equal(by_key)) == 2


def test_merged_groups_of_an_optimizer() -> None:
    """As many parameters, with their names, and steps of the same bits."""
    model = GPT(tied=False)
    one_each = [{"params": [pair], "lr": 0.1} for pair in model.named_parameters()]
    merged = sf.merge_equal(sf.StackelbergAdamW(one_each).param_groups)
    (group,) = merged
    assert group["param_names"] == [name for name, _ in model.named_parameters()]
    assert len(group["params"]) == len(group["param_names"])


def test_names_and_no_names_are_not_merged() -> None:
    a, b = (nn.Parameter(torch.ones(1)) for _ in range(2))
    with pytest.raises(ValueError, match="name their parameters, and others do not"):
        sf.merge_equal([{"params": [("a", a)]}, {"params": [b]}])


def test_what_are_no_groups() -> None:
    cases: list[Any] = [{"params": []}, [{"lr": 0.1}], GPT(), [torch.ones(2)]]
    for groups in cases:
        for take in (sf.merge_equal, sf.describe):
            with pytest.raises(TypeError, match=r"param groups? "):
                take(groups)


def test_patterns_that_are_no_dict() -> None:
    with pytest.raises(TypeError, match="patterns must be a dict of settings, got list"):
        sf.groups_by_pattern(GPT(), ["wte"])  # type: ignore[arg-type]
