"""Which path of the CPU kernel elements take: vectors for every scheme of Adam, chunks for what vectors leave over."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends import chosen
from named_schemes import NAMED
from schemes_and_gradients import GRADS, STATES, WEIGHTS, parameter
from torch import Tensor

import stackelberg_fused as sf
from stackelberg_fused import _cpu
from stackelberg_fused.backends.cpu import updated_elements

CHUNK = 512
TAKES_VECTORS = _cpu.isa() == "avx512"
needs_vectors = pytest.mark.skipif(not TAKES_VECTORS, reason="this processor has no AVX-512")
RULES: dict[str, tuple[type, dict[str, Any]]] = {
    "adamw": (sf.StackelbergAdamW, {"weight_decay": 0.1}),
    "adam": (sf.StackelbergAdam, {"weight_decay": 0.1}),
    "cautious": (sf.StackelbergAdamW, {"weight_decay": 0.1, "cautious": True}),
}


def elements_by_path(optimizer: Any) -> dict[str, int]:
    """Make a step; return the paths that elements took, with how many."""
    before = updated_elements()
    optimizer.step()
    taken = {path: count - before[path] for path, count in updated_elements().items()}
    return {path: count for path, count in taken.items() if count}


def build(
    size: int, dtype: torch.dtype, grad: torch.dtype, rule: str = "adamw", **how: Any
) -> tuple[Any, Tensor]:
    p = parameter(torch.linspace(-1, 1, size).to(dtype), grad)
    kind, settings = RULES[rule]
    settings = {"lr": 0.01, "float32_state": "none", "backend": "cpu", **settings, **how}
    p.grad = torch.linspace(-2, 1, size).to(grad)
    return kind([p], **settings), p


@needs_vectors
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("named", NAMED.values(), ids=NAMED)
def test_the_named_schemes_take_vectors(named: Any, rule: str) -> None:
    optimizer, _ = build(3 * CHUNK, named.scheme.param, named.grad, rule, **named.settings)
    for _ in range(2):
        assert elements_by_path(optimizer) == {"vectors": 3 * CHUNK}


@needs_vectors
@pytest.mark.parametrize("grad", GRADS, ids=str)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dtype, master", WEIGHTS, ids=str)
def test_every_scheme_with_every_gradient_takes_vectors(
    dtype: torch.dtype, master: str | None, state: str, grad: torch.dtype
) -> None:
    how = {} if dtype == torch.float32 else {"master": master}
    optimizer, _ = build(2 * CHUNK, dtype, grad, state_dtype=state, **how)
    all_float32 = dtype == torch.float32 and state == "float32"  # whatever the gradient
    for _ in range(2):
        assert elements_by_path(optimizer) == {"in place" if all_float32 else "vectors": 2 * CHUNK}


@needs_vectors
def test_boxes_clipping_and_mean_gradients_keep_to_vectors() -> None:
    how = {"master": "kahan", "state_dtype": "8bit", "max_grad_norm": 0.1}
    how |= {"constraint": sf.Box(-0.5, 0.5), "update_every": 2, "update_every_grads": "mean"}
    optimizer, _ = build(4 * CHUNK, torch.bfloat16, torch.bfloat16, **how)
    assert elements_by_path(optimizer) == {}
    assert elements_by_path(optimizer) == {"vectors": 4 * CHUNK}


@needs_vectors
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("master", ["split16", "kahan", "fp32"])
def test_ragged_ends_and_unusual_chunks_take_the_general_path(master: str, state: str) -> None:
    optimizer, p = build(
        5 * CHUNK + 40, torch.bfloat16, torch.bfloat16, master=master, state_dtype=state
    )
    assert elements_by_path(optimizer) == {"vectors": 5 * CHUNK, "chunks": 40}
    p.grad[3 * CHUNK + 7] = torch.nan
    assert elements_by_path(optimizer) == {"vectors": 4 * CHUNK, "chunks": CHUNK + 40}


def test_other_rules_and_other_processors_take_chunks() -> None:
    how = {"master": "split16", "state_dtype": "bfloat16"}
    amsgrad, _ = build(2 * CHUNK, torch.bfloat16, torch.bfloat16, amsgrad=True, **how)
    assert elements_by_path(amsgrad) == {"chunks": 2 * CHUNK}
    how["backend"] = chosen("baseline")[0]
    baseline, _ = build(2 * CHUNK, torch.bfloat16, torch.bfloat16, **how)
    assert elements_by_path(baseline) == {"chunks": 2 * CHUNK}


def test_what_does_not_move_is_not_counted() -> None:
    optimizer, p = build(2 * CHUNK, torch.bfloat16, torch.bfloat16)
    p.grad = None
    assert elements_by_path(optimizer) == {}
