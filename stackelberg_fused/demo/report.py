"""Report of a finished demo: tables and a verdict on the terminal, and result.json for programs."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..report.environment import environment
from .checkpoint import write_atomically

Record = dict[str, Any]
FRACTIONS = (0.25, 0.5, 0.75, 1.0)
WARMUP_STEPS = 5  # not timed: the first steps allocate state and fault pages in


def loss_at(record: Record, fraction: float) -> tuple[int, float]:
    """Return the last evaluated step at or before this fraction of the run, and the validation loss there.

    A loss that is not finite is returned as infinity, so that a diverged run compares as the worst.
    """
    points = record["validation"]
    step, loss, _ = [point for point in points if point[0] <= fraction * points[-1][0]][-1]
    return step, loss if math.isfinite(loss) else math.inf


def final_loss(record: Record) -> float:
    return loss_at(record, 1.0)[1]


def gap(record: Record, control: Record) -> float:
    """Return the relative difference of the final validation loss to the control's: -0.02 is two per cent lower."""
    if math.isinf(final_loss(record)):
        return math.inf
    return final_loss(record) / final_loss(control) - 1


def percent(share: float, spec: str = ".1f") -> str:
    """Return a share in per cent; one that rounds to zero has no minus sign, which would say that it is below."""
    text = f"{100 * share:{spec}}%"
    return text.replace("-", "+" if "+" in spec else "") if not text.strip("-0.%") else text


def timing(record: Record) -> dict[str, float]:
    """Return the median times of step() and of a training iteration, and the 20th and 80th percentile of step().

    All are in microseconds, except `step_share`, the median step() time divided by the median iteration time.
    """
    first = WARMUP_STEPS if len(record["step_us"]) > 2 * WARMUP_STEPS else 0
    steps = sorted(record["step_us"][first:])
    iteration = statistics.median(record["iteration_us"][first:])
    median = statistics.median(steps)
    return {
        "step_us_p20": steps[int(0.2 * len(steps))],
        "step_us_p50": median,
        "step_us_p80": steps[int(0.8 * len(steps))],
        "iteration_us_p50": iteration,
        "step_share": median / iteration,
    }


def is_control_again(record: Record, control: Record) -> bool:
    """Tell whether a run is the control's algorithm at the control's rate, so that only rounding differs."""
    return record["ratio"] == 1 and record["body_lr"] == control["body_lr"]


def led_until(record: Record, control: Record) -> int:
    """Return the last step up to which all evaluations after step 0 were below the control's, or 0."""
    led = 0
    for (step, loss, _), (_, other, _) in zip(
        record["validation"][1:], control["validation"][1:], strict=True
    ):
        if not loss < other:
            break
        led = step
    return led


FEWEST_STEPS = 100  # a shorter run is a trial and compares nothing


def verdict(records: list[Record]) -> list[str]:
    """Return the sentences that the losses of one seed support; of a trial run they support none."""
    control, *ratio_runs = records
    last_step = control["validation"][-1][0]
    if last_step < FEWEST_STEPS:
        lines = [f"{last_step} steps show that it runs: too few to compare anything."]
        diverged = [record["name"] for record in records if math.isinf(final_loss(record))]
        return lines + [f"Diverged: {', '.join(diverged)}."] * bool(diverged)
    rivals = [r for r in ratio_runs if not is_control_again(r, control)]
    helped = [r for r in rivals if gap(r, control) < 0]
    best = min([control, *helped], key=final_loss)
    first = f"Lowest final validation loss: {best['name']}, {final_loss(best):.4f}"
    if best is not control:
        first += f", {percent(-gap(best, control))} below {control['name']}"
    lines = [f"{first}. One seed: how much of any gap is luck is unknown."]
    failed = [_shortfall(r, control) for r in rivals if r not in helped]
    if failed:
        lines.append(f"{'Did not help' if helped else 'No ratio helped'}: {', '.join(failed)}.")
    lines.extend(
        f"{r['name'].capitalize()} is {control['name']}'s own algorithm: rounding alone made "
        f"{percent(gap(r, control), '+.2f')} of difference, so gaps of that size say nothing."
        for r in ratio_runs
        if is_control_again(r, control)
    )
    return lines


def _shortfall(record: Record, control: Record) -> str:
    led = led_until(record, control)
    early = f" after leading up to step {led}" if led else ""
    return f"{record['name']} ({percent(gap(record, control), '+.1f')}{early})"


def print_report(console: Console, records: list[Record], loss_unit: str) -> None:
    """Print the two tables and the verdict, in at most 80 columns."""
    control = records[0]
    losses = Table(title=f"Validation loss ({loss_unit}) at equal steps", title_justify="left")
    losses.add_column("run")
    losses.add_column("body lr", justify="right")
    losses.add_column("head lr", justify="right")
    best = {}
    for fraction in FRACTIONS:
        step, _ = loss_at(control, fraction)
        losses.add_column(f"{fraction:.0%}\n{step}", justify="right")
        best[fraction] = min(loss_at(record, fraction)[1] for record in records)
    losses.add_column("vs\ntorch", justify="right")
    for record in records:
        row = [record["name"], f"{record['body_lr']:g}", f"{record['head_lr']:g}"]
        for fraction in FRACTIONS:
            loss = loss_at(record, fraction)[1]
            row.append(f"[bold green]{loss:.4f}[/]" if loss == best[fraction] else f"{loss:.4f}")
        row.append("" if record is control else percent(gap(record, control), "+.1f"))
        losses.add_row(*row)
    console.print(losses)

    speed = Table(title="Optimizer: medians per training iteration", title_justify="left")
    speed.add_column("run")
    speed.add_column("backend")
    for heading in ("step() µs", "p20 - p80", "iteration ms", "share"):
        speed.add_column(heading, justify="right")
    for record in records:
        t = timing(record)
        speed.add_row(
            record["name"],
            record["backend"],
            f"{t['step_us_p50']:.0f}",
            f"{t['step_us_p20']:.0f} - {t['step_us_p80']:.0f}",
            f"{t['iteration_us_p50'] / 1e3:.2f}",
            f"{t['step_share']:.1%}",
        )
    console.print(speed)
    for line in verdict(records):
        console.print(line, highlight=False)


def write_result(
    path: Path, settings: dict[str, Any], data: dict[str, Any], records: list[Record]
) -> None:
    """Write settings, data, environment, measurements and verdict as JSON; tests/demo/test_train.py lists the keys."""
    runs = []
    for record in records:
        run = {k: v for k, v in record.items() if k not in ("step_us", "iteration_us")}
        run["train_loss"] = [_number(loss) for loss in record["train_loss"]]
        run["validation"] = [
            {"step": step, "loss": _number(loss), "accuracy": accuracy}
            for step, loss, accuracy in record["validation"]
        ]
        runs.append({**run, "timing": timing(record)})
    result = {
        "format": 1,
        "settings": settings,
        "data": data,
        "environment": environment(),
        "runs": runs,
        "verdict": verdict(records),
    }
    text = json.dumps(result, indent=1) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text))


def _number(loss: float) -> float | None:
    """Return None for NaN and infinity, which JSON does not have."""
    return loss if math.isfinite(loss) else None
