"""Which parameters keep float32 state does not depend on how they lie: by their shape, else by size and name."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import pytest
import torch
from backends import by_host_backend, chosen
from checks import assert_same_optimizers
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.groups.float32_state import LONGEST_VECTOR
from stackelberg_fused.groups.schemes import scheme_of

EIGHT = torch.uint8


def _state(params: Any, **how: Any) -> list[torch.dtype]:
    ours = sf.StackelbergAdamW(params, **{"state_dtype": "8bit", **how})
    (group,) = ours.param_groups
    names = group.get("param_names") or [""] * len(group["params"])
    return [scheme_of(group, p, n).state for n, p in zip(names, group["params"], strict=True)]


def _ones(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape))


def test_long_vectors_are_taken_for_flattened_matrices() -> None:
    long, short = LONGEST_VECTOR + 1, LONGEST_VECTOR
    params = {
        "matrix": _ones(2, 2),
        "vector": _ones(short),
        "flat": _ones(long),
        "layer.bias": _ones(long),
        "final_LayerNorm.weight": _ones(long),
        "scalar": _ones(),
    }
    full = torch.float32
    assert _state(params.items()) == [EIGHT, full, EIGHT, full, full, full]
    # without names by size alone
    assert _state(params.values()) == [EIGHT, full, EIGHT, EIGHT, EIGHT, full]
    assert _state(params.items(), float32_state="none") == [EIGHT] * 6


def test_what_was_decided_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    params = [("flat", _ones(LONGEST_VECTOR + 1)), ("vector", _ones(3)), ("matrix", _ones(3, 3))]
    with caplog.at_level(logging.INFO, "stackelberg_fused"):
        ours = sf.StackelbergAdamW(params, state_dtype="bfloat16", backend="cpu")
        for _, param in params:
            param.grad = torch.ones_like(param)
        ours.step()
        ours.add_param_group({"params": [("more", _ones(2))]})
        ours.step()
    said = [r.getMessage() for r in caplog.records if "one dimension" in r.getMessage()]
    assert said == [
        "parameter 'flat' of param group 0 (body) has state of torch.bfloat16, though it has one dimension: it has "
        f"{LONGEST_VECTOR + 1} elements, more than a norm or a bias"
    ]


def _is_small(name: str, param: Tensor) -> bool:
    return name.startswith("small") or param.numel() < 10


@by_host_backend
def test_a_predicate_decides(backend: str) -> None:
    params = [("small", _ones(64, 64)), ("large", _ones(64)), ("b", _ones(3, 3))]
    ours = sf.StackelbergAdamW(
        params, state_dtype="8bit", float32_state=_is_small, backend=chosen(backend)[0]
    )
    for _, param in params:
        param.grad = torch.ones_like(param)
    ours.step()
    held = [{n: v.dtype for n, v in ours.state[p].items()} for _, p in params]
    assert held[0]["exp_avg"] is held[2]["exp_avg"] is torch.float32
    assert held[1]["exp_avg_code"] is EIGHT


def test_a_predicate_by_role() -> None:
    body, head = _ones(4, 4), _ones(4, 4)
    groups = [{"params": [body]}, {"params": [head], "role": "head"}]
    asked: list[tuple[str, Tensor]] = []

    def no(name: str, param: Tensor) -> bool:
        asked.append((name, param))
        return True

    ours = sf.StackelbergAdamW(groups, state_dtype="8bit", float32_state={"head": no})
    states = [scheme_of(g, g["params"][0]).state for g in ours.param_groups]
    assert states == [EIGHT, torch.float32]
    assert all(name == "" and param is head for name, param in asked)


def test_a_predicate_is_saved_as_no_code_and_stays_on_loading() -> None:
    def build() -> Any:
        model = nn.Linear(8, 8)
        model(torch.ones(1, 8)).sum().backward()
        named = model.named_parameters()
        return sf.StackelbergAdamW(named, state_dtype="8bit", float32_state=_is_small)

    torch.manual_seed(0)
    ours, other = build(), build()
    ours.step()
    saved = io.BytesIO()
    torch.save(ours.state_dict(), saved)
    saved.seek(0)
    for p, q in zip(other.param_groups[0]["params"], ours.param_groups[0]["params"], strict=True):
        p.data.copy_(q.data)
    other.load_state_dict(torch.load(saved, weights_only=True))
    assert other.param_groups[0]["float32_state"] is _is_small
    for optimizer in (ours, other, twin := copy.deepcopy(ours)):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert_same_optimizers(other, ours)
    assert_same_optimizers(twin, ours)


def test_a_predicate_that_is_put_there_later() -> None:
    param = _ones(8, 8)
    ours = sf.StackelbergAdamW([("w", param)], state_dtype="bfloat16", backend="cpu")
    for setting, dtype in (("vectors", torch.bfloat16), (lambda n, p: n == "w", torch.float32)):
        ours.param_groups[0]["float32_state"] = setting
        param.grad = torch.ones_like(param)
        ours.step()
        assert ours.state[param]["exp_avg"].dtype is dtype


@pytest.mark.parametrize("answer", [None, 1, torch.tensor(True)])
def test_an_answer_that_is_none(answer: Any) -> None:
    with pytest.raises(TypeError, match=r"parameter 'w' of param group 0 .*must return a bool"):
        sf.StackelbergAdamW(
            [("w", _ones(2, 2))], state_dtype="bfloat16", float32_state=lambda n, p: answer
        )
