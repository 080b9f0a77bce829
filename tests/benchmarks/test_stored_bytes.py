"""Bytes by dtype, and bytes as they are allocated."""

from __future__ import annotations

import pytest
import torch
from stackelberg_fused.benchmarks.low_precision import our_dtypes
from stackelberg_fused.benchmarks.stored_bytes import stored_bytes

import stackelberg_fused as sf

# Adam reads p, g, m, v and the further bits of p, and writes all but g
MOVED = {
    ("float32", "bfloat16", "stochastic"): 22,
    ("float32", "bfloat16", None): 22,
    ("float32", "bfloat16", "split8"): 24,
    ("float32", "bfloat16", "split16"): 26,
    ("float32", "bfloat16", "kahan"): 26,
    ("bfloat16", "bfloat16", "stochastic"): 14,
    ("bfloat16", "bfloat16", "kahan"): 18,
    ("8bit", "bfloat16", "stochastic"): 10.125,
    ("8bit", "bfloat16", "split8"): 12.125,
    ("float32", "float32", None): 28,
    ("bfloat16", "float32", None): 20,
    ("8bit", "float32", None): 16.125,
    ("8bit", "float16", "kahan"): 14.125,
}


def test_a_gradient_may_have_another_dtype_than_its_parameter():
    dtypes = our_dtypes(torch.float32, None, "8bit", torch.bfloat16)
    assert dtypes.moved == MOVED["8bit", "float32", None] - 2


@pytest.mark.parametrize(("states", "param", "master"), MOVED)
def test_bytes_by_dtype_are_those_that_the_optimizer_stores(states, param, master):
    dtype = getattr(torch, param)
    dtypes = our_dtypes(dtype, master, states)
    assert dtypes.moved == MOVED[states, param, master]
    p = torch.nn.Parameter(torch.zeros(64, 96, dtype=dtype))
    p.grad = torch.ones_like(p)
    opt = sf.StackelbergAdamW([p], master=master, state_dtype=states)
    opt.step()
    # without its step count
    stored = stored_bytes([p], opt.state) - opt.state[p]["step"].nbytes
    assert stored == dtypes.stored * p.numel()


def test_storages_are_counted_once_and_looked_for_inside():
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor

    class Own:
        def __init__(self) -> None:
            self.codes, self.itself = torch.zeros(5, dtype=torch.uint8), self

    flat = torch.zeros(10)
    p, q = torch.nn.Parameter(flat[:4]), torch.nn.Parameter(flat[4:])
    table = torch.zeros(3)
    state = {
        p: {"step": 3, "m": two_tensor(torch.zeros(2), torch.zeros(2)), "table": table},
        q: {"m": Own(), "table": table, "parts": [torch.zeros(7), None]},
    }
    assert stored_bytes([p, q], state) == 4 * (10 + 2 + 2 + 3 + 7) + 5
