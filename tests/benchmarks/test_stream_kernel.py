"""The Triton kernel that only moves bytes, under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def test_the_streaming_kernel_moves_every_element():
    pytest.importorskip("triton")
    program = (
        "import torch; from stackelberg_fused.benchmarks.stream_kernel import stream\n"
        "p, g, m, v = (torch.full((5000,), float(i)) for i in range(1, 5))\n"
        "stream(p, g, m, v, 4999)\n"
        "assert p[:4999].eq(3).all() and m[:4999].eq(5).all() and v[:4999].eq(6).all()\n"
        "assert (p[4999], g[4999], m[4999], v[4999]) == (1, 2, 3, 4)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True
    )
