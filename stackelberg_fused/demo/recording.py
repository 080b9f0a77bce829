"""What `stackelberg report` shows of a demo: one recorder for each run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..report.recorder import Recorder
from ..report.run_folder import SUFFIX
from .follower_gap import how
from .runs import Demo
from .trainer import Trainer


@contextmanager
def recorded(demo: Demo, out: Path, resume: bool) -> Iterator[None]:
    """Record all runs of a demo in `out` while it trains. A demo that is not resumed replaces what is there."""
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
            )
            closing.callback(_close, run)
        yield


def _close(run: Trainer) -> None:
    recorder, run.recorder = run.recorder, None
    if recorder:
        recorder.close(finished=run.finished)
