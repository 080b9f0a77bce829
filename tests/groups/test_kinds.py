"""Groups by kind of parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import GPT, Bert, ViT
from torch import nn

import stackelberg_fused as sf


def _names(model: nn.Module, **options: Any) -> dict[str, list[str]]:
    sf.StackelbergAdamW(sf.kinds(model, **options))
    torch.optim.SGD(sf.kinds(model, **options))
    groups = sf.kinds(model, **options)
    found = {group["name"]: [name for name, _ in group["params"]] for group in groups}
    every = [name for names in found.values() for name in names]
    assert sorted(every) == sorted(name for name, _ in model.named_parameters())
    return found


def test_gpt() -> None:
    found = _names(GPT(tied=False))
    assert list(found) == ["embedding", "matrix", "vector", "head"]
    assert found["embedding"] == ["transformer.wte.weight", "transformer.wpe.weight"]
    assert found["head"] == ["lm_head.weight"]
    assert all("up.weight" in name or "down.weight" in name for name in found["matrix"])
    assert all("bias" in name or "norm" in name or "ln_f" in name for name in found["vector"])


def test_a_tied_head_is_an_embedding() -> None:
    assert "head" not in _names(GPT(tied=True))


def test_tables_that_are_no_module() -> None:
    found = _names(ViT())
    assert found["embedding"] == ["cls_token", "pos_embed"]
    assert "patch_embed.weight" in found["matrix"]
    assert found["head"] == ["head.weight", "head.bias"]


def test_a_head_by_name_and_settings_by_kind() -> None:
    settings = {"embedding": {"lr": 0.3}, "head": {"lr": 0.1, "weight_decay": 0.0}}
    groups = {g["name"]: g for g in sf.kinds(Bert(), settings, head="bert.pooler")}
    assert groups["embedding"]["lr"] == 0.3
    assert groups["head"]["weight_decay"] == 0.0
    assert not any("role" in group for group in groups.values())
    assert [name for name, _ in groups["head"]["params"]] == [
        "bert.pooler.weight",
        "bert.pooler.bias",
    ]
    assert "lr" not in groups["matrix"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scalar": {}}, "unknown kind 'scalar', expected one of 'embedding', 'matrix'"),
        ({"embedding": {}}, "no parameter of the kind 'embedding'"),
    ],
)
def test_settings_that_reach_nothing(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sf.kinds(nn.Linear(3, 3), settings)


def test_of_a_lazy_module() -> None:
    with pytest.raises(ValueError, match="a lazy module gives it on its first input"):
        sf.kinds(nn.Sequential(nn.LazyLinear(3)))


def test_settings_cannot_take_the_parameters_away() -> None:
    with pytest.raises(TypeError, match="not its 'params'"):
        sf.kinds(ViT(), {"head": {"params": []}})


def test_positions_of_mingpt() -> None:
    model = ViT()
    model.pos_emb = nn.Parameter(torch.zeros(1, 3, 4))
    assert "pos_emb" in _names(model)["embedding"]


def test_a_head_by_the_name_that_a_group_shows() -> None:
    model = torch.compile(ViT())
    names = [name for name, _ in sf.kinds(model)[-1]["params"]]
    assert names == ["_orig_mod.head.weight", "_orig_mod.head.bias"]
    for head in ("head", "_orig_mod.head", names):
        assert [name for name, _ in sf.kinds(model, head=head)[-1]["params"]] == names
    with pytest.raises(TypeError, match="head must be a name or several, got Linear"):
        sf.kinds(model, head=ViT().head)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got a Linear in it"):
        sf.kinds(model, head=[ViT().head])  # type: ignore[list-item]
