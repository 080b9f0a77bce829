"""A recorded run without any training: what pages are tested with."""

from __future__ import annotations

import math
from pathlib import Path

from stackelberg_fused.report.recorder import Recorder

# what a careless or hostile run may have for a name
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028"


def record(
    folder: Path,
    arms: tuple[str, ...] = ("one rate", "ratio 10"),
    *,
    steps: int = 400,
    made: int | None = None,
    clips: bool = True,
    diverges: str = "",
    text: str = "A test's run",
) -> None:
    """Record arms whose loss falls, the later ones' lower.

    Args:
        folder: of the run.
        arms: their names.
        steps: planned.
        made: steps that the last arm made, after which it was killed; all by default.
        clips: gradients are clipped.
        diverges: an arm whose loss is NaN from the middle on.
        text: title, and one of the settings.
    """
    for index, arm in enumerate(arms):
        is_killed = made is not None and index == len(arms) - 1
        settings = {"lr": 1e-3 * (index + 1), "seed": 0, "note": text, "data": {"source": text}}
        recorder = Recorder(folder, arm, title=text, steps=steps, settings=settings)
        recorder.evaluation(0, 4.0)
        for step in range(1, (made or steps if is_killed else steps) + 1):
            loss = 1.0 - 0.1 * index + 3 * math.exp(-step / 40) + 0.02 * math.sin(step)
            if arm == diverges and step > steps // 2:
                loss = math.nan
            rate = 1e-3 * min(1.0, step / 20)
            values = (
                {"clip_factor": {"body": 0.6 + 0.3 * math.sin(step), "head": 1.0}} if clips else {}
            )
            recorder.step(
                step,
                loss,
                rate={"body": rate, "head": 10 * rate},
                grad_norm={"body": 2.0 + math.cos(step), "head": 0.5, "total": 2.5},
                step_us=100.0 + index,
                **values,
            )
            if step % 40 == 0:
                recorder.evaluation(step, loss, follower_gap=1.0 / step, accuracy=1 - 1 / step)
        if is_killed:
            recorder.flush()
        else:
            recorder.close()
