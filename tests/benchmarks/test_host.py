"""The host row leaves out the kernel's time."""

from __future__ import annotations

from bench_rows import FAST, TRIO
from stackelberg_fused.benchmarks import host


def test_the_host_row_leaves_out_the_kernel_and_puts_it_back():
    from stackelberg_fused import _cpu

    kernel = _cpu.step
    row = host.run(TRIO[0], TRIO[2], FAST, counts=(2, 8))
    assert _cpu.step is kernel
    assert [c["parameters"] for c in row["cases"]] == [2, 2, 8, 8]
    assert all(c["kernel_p50_ns"] > 0 and c["p50_ns"] > 0 for c in row["cases"])
    assert row["cases"][2]["allowed_us"] == 22.0
    assert row["cases"][3]["allowed_us"] == 24.8
