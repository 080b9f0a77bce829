"""The rows that are no step beside its peers, as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import host
from .formatting import duration, judged, load_line


def host_row(row: dict[str, Any]) -> Iterator[str]:
    """What a step costs on the host around the kernel."""
    yield row["name"]
    yield f"  {row['backend']}, parameters of 16 elements"
    yield (
        f"  {'parameters':>10}  {'gradients':<14}{'host, median':>14}{'p20 .. p80':>22}"
        f"{'allowed':>10}{'':>18}{'kernel':>10}{'torch fused, all':>18}"
    )
    for case in row["cases"]:
        yield (
            f"  {case['parameters']:>10}  {case['gradients']:<14}{duration(case['p50_ns']):>14}"
            f"{duration(case['p20_ns']) + ' .. ' + duration(case['p80_ns']):>22}"
            f"{case['allowed_us']:>7.0f} us{judged(case['met']):>18}"
            f"{duration(case['kernel_p50_ns']):>10}"
            f"{duration(case['torch_fused_whole_step']['p50_ns']):>18}"
        )
    slopes = ", ".join(
        f"gradients {key} {value:.3f} us (at most {host.PER_PARAMETER_US[key]})"
        for key, value in row["per_parameter_us"].items()
    )
    yield f"  each further parameter: {slopes}"
    busiest = max(row["cases"], key=lambda case: case["load"]["other_processes_cpus"])
    yield f"  at the worst, {load_line(busiest['load'])}"


def pools_row(row: dict[str, Any]) -> Iterator[str]:
    """torch's operators after our step and without us."""
    yield row["name"]
    yield f"  against a process that never imports us: at most {row['limit']}"
    yield f"  {'operator':<18}{'after our step':>16}{'without us':>14}{'ratio':>8}"
    for operator in row["operators"]:
        yield (
            f"  {operator['name']:<18}{duration(operator['after_ours']['p50_ns']):>16}"
            f"{duration(operator['without_us']['p50_ns']):>14}{operator['ratio']:>8.2f}"
            f"  {judged(operator['met'])}"
        )
    yield f"  {load_line(row['load'])}"
