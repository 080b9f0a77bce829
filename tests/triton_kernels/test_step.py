"""The Triton kernel in Triton's interpreter: in a process of its own, since TRITON_INTERPRET is read on decoration."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from paths import SUPPORT

pytest.importorskip("triton")


OPTIMIZER = """
import torch, stackelberg_fused as sf, triton
def train(backend):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(n)) for n in (0, 63, 4097)]
    groups = [{"params": params[:2], "role": "head", "rule": "sgd", "momentum": 0.9}, {"params": params[2:]}]
    opt = sf.StackelbergAdamW(groups, lr=1e-2, backend=backend)
    for role in (None, "head", "body"):
        for p in params:
            p.grad = torch.randn_like(p)
        opt.step(role=role)
    return params, opt
ours, opt = train("triton")
assert (opt.backend, opt.launches) == ("triton", 3), (opt.backend, opt.launches)
rounds_once = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
rtol, atol = (0, 0) if rounds_once else (1e-5, 1e-6)
for p, q in zip(ours, train("cpu")[0]):
    torch.testing.assert_close(p, q, rtol=rtol, atol=atol)
print("checked")
"""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([str(SUPPORT / "interpret_triton.py")], id="tables", marks=pytest.mark.slow),
        pytest.param(["-c", OPTIMIZER], id="optimizer"),
    ],
)
def test_interpreted(arguments: list[str]) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "checked"
