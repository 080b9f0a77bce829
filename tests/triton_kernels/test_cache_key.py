"""Kernels that Triton keeps on disk are of the tables that they are launched with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sass
from paths import SUPPORT

pytestmark = pytest.mark.skipif(bool(sass.unavailable()), reason=sass.unavailable())

COMPILE = """
import sys
sys.path.insert(0, {support!r})
import numpy as np
from stackelberg_fused.native import tables

if {moved}:
    names = [name for name in tables.RECORD.names if name != "param"]
    fields = [(name, tables.RECORD.fields[name][0]) for name in (*names[:-1], "param", names[-1])]
    tables.RECORD = np.dtype(fields)
for name in [name for name in sys.modules if name.startswith("stackelberg_fused.triton_kernels")]:
    del sys.modules[name]  # they have read the table
import compile_triton

compile_triton.triton.runtime.driver.set_active(compile_triton.Driver(90))
with compile_triton.compiling_only():
    print(compile_triton.compile_projection().asm["ptx"])
"""


def _ptx(cache: Path, moved: bool) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    program = COMPILE.format(support=str(SUPPORT), moved=moved)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_table_that_has_changed_is_noticed(tmp_path: Path) -> None:
    before = _ptx(tmp_path / "cache", moved=False)
    files = set((tmp_path / "cache").iterdir())
    assert _ptx(tmp_path / "cache", moved=False) == before
    assert set((tmp_path / "cache").iterdir()) == files, "the same kernel was compiled again"
    changed = _ptx(tmp_path / "cache", moved=True)
    assert changed != before
    assert changed == _ptx(tmp_path / "fresh cache", moved=True)
