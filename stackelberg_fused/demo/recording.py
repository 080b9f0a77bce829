"""What `stackelberg report` and TensorBoard show of a demo: one recorder for each run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..report.events import Events, summary_writer
from ..report.recorder import Recorder, arm_folder
from ..report.run_folder import SUFFIX
from .follower_gap import how
from .gaussian_fit import factor
from .gaussian_runs import SIDES, GaussianRuns
from .runs import Demo
from .trainer import Trainer


class LogdirError(RuntimeError):
    """Raised where nothing can be written for TensorBoard; the message says why."""


def prepare(logdir: Path | None) -> None:
    """Make the folder for TensorBoard, before anything is trained or replaced.

    Raises:
        LogdirError: TensorBoard is not installed, or the folder cannot be made.
    """
    if logdir is None:
        return
    try:
        summary_writer()
        logdir.mkdir(parents=True, exist_ok=True)
    except (ImportError, OSError) as error:
        raise LogdirError(f"--logdir: {error}") from error


@contextmanager
def recorded(demo: Demo, out: Path, resume: bool, logdir: Path | None = None) -> Iterator[None]:
    """Record all runs of a demo in `out` while it trains. A demo that is not resumed replaces what is there.

    Args:
        logdir: where TensorBoard's event files are written too.
    """
    if not resume:
        for old in out.glob(f"*{SUFFIX}"):
            old.unlink()
    settings, data = demo.settings, demo.task.data
    shared = settings.to_dict()
    for name in ("lr", "body_lr", "ratios"):  # each run has its own
        del shared[name]
    told = {"loss_unit": demo.task.loss_unit, "follower_gap": how(demo.task)}
    with ExitStack() as closing:
        for run in demo.runs:
            own = {key: run.record[key] for key in ("body_lr", "head_lr", "ratio", "backend")}
            run.recorder = Recorder(
                out,
                run.record["name"],
                title=f"{data['model']} on {data['source']}",
                steps=settings.steps,
                settings={**own, **shared, **told, "data": data},
                resume=resume,
                logdir=logdir,
            )
            closing.callback(_close, run)
        yield


def _close(run: Trainer) -> None:
    recorder, run.recorder = run.recorder, None
    if recorder:
        recorder.close(finished=run.finished)


def log_photograph(runs: GaussianRuns, logdir: Path) -> None:
    """Write PSNR in dB and rates of the finished runs for TensorBoard; what was written of the same ones goes."""
    for side, found in runs.found.items():
        for seed, run in found.items():
            events = Events(logdir / arm_folder(f"{side} seed {seed}"), resume=False)
            for step, psnr in run["psnr"].items():
                share = factor(SIDES[side].schedule, int(step), runs.size.steps)
                rates = {kind: share * rate for kind, rate in SIDES[side].rates.items()}
                row = {"kind": "evaluation", "step": int(step), "psnr": psnr, "rate": rates}
                events.add(row, time.time())
            events.close()
