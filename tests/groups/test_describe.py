"""The table of param groups."""

from __future__ import annotations

import pytest
import torch
from small_models import GPT, ViT

import stackelberg_fused as sf


def test_of_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert sf.describe(sf.layerwise_lr_decay(GPT(tied=False), 0.5, lr=1.0)) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["group", "parameters", "elements", "lr", "role", "precision"]
    assert lines[1].split() == ["0", "depth", "0", "2", "128", "0.0625", "body", "float32"]
    assert lines[-2].split() == ["5", "head", "1", "88", "1", "head", "float32"]
    total = sum(p.numel() for p in GPT(tied=False).parameters())
    assert lines[-1].split() == ["all", "23", f"{total:,}"]
    assert len({len(line) for line in lines[1:-1]}) == 1


def test_of_optimizers(capsys: pytest.CaptureFixture[str]) -> None:
    model = ViT().to(torch.bfloat16)
    sf.describe(
        sf.StackelbergAdamW(
            sf.split_body_head(model, head="head"), lr=1e-3, master="split16", state_dtype="8bit"
        )
    )
    printed = capsys.readouterr().out
    assert "0.001" in printed
    assert "0.01" in printed
    assert "bfloat16, master split16, state 8bit" in printed
    sf.describe(torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.25))
    count = sum(p.numel() for p in model.parameters())
    assert capsys.readouterr().out.split()[-4:] == [f"{count:,}", "0.5", "0.25", "bfloat16"]


def test_many_groups_are_shown_as_a_table() -> None:
    few = sf.StackelbergAdamW(sf.split_body_head(ViT(), head="head"))
    assert "Parameter Group 1" in repr(few)
    many = sf.StackelbergAdamW(sf.layerwise_lr_decay(ViT(), 0.5, lr=1.0))
    shown = repr(many).splitlines()
    assert shown[0] == "StackelbergAdamW ("
    assert shown[-1] == ")"
    assert len(shown) == len(many.param_groups) + 4
    assert "weight decay" in shown[1]


def test_groups_with_iterators_keep_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    groups = [{"params": part.parameters()} for part in ViT().blocks]
    sf.describe(groups)
    assert "all" in capsys.readouterr().out
    count = len(list(ViT().blocks[0].parameters()))
    assert [len(group["params"]) for group in torch.optim.SGD(groups).param_groups] == [count] * 3
