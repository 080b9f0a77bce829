"""What `python -m stackelberg_fused train` does: one learning rate against a slow body and a fast head.

Trains a small model with torch's AdamW at one rate (the control), and with StackelbergAdamW at several
head/body ratios, all from the same weights and on the same batches. `settings.py` has the rates; the
control's is the best single rate of a scan.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..report.page import write as write_page
from . import checkpoint
from .plot import draw
from .recording import prepare, recorded
from .report import final_loss, print_report, write_result
from .runs import Demo
from .settings import DEFAULTS, QUICK_STEPS, Settings
from .tasks import TASKS


def run(args: argparse.Namespace, how_to_resume: Sequence[str] = ()) -> int:
    """Train and report; return the exit code: 0, 2 for an error, 128 + n if signal n stopped the training.

    Args:
        how_to_resume: the command, without `--resume`, that goes on with what was stopped; `train` if empty.
    """
    out = args.out or Path("runs") / (args.task or "language")
    path = out / "checkpoint.pt"
    how_to_resume = how_to_resume or ("train", "--out", str(out), *logdir_option(args))
    console = Console()
    try:
        prepare(args.logdir)
        demo = _resumed(args, path) if args.resume else _fresh(args, path)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _announce(demo, console)
    stop = checkpoint.StopRequest()
    try:
        with stop, recorded(demo, out, args.resume, args.logdir):
            demo.train(stop, console)
        if stop.signal is None:
            _report(demo, out, console)
            return 0
    except KeyboardInterrupt:  # the second Ctrl-C; the last checkpoint is from before the first
        stop.signal = signal.SIGINT
    except OSError as error:  # the disk is full
        print(f"error: {error}", file=sys.stderr)
        if path.exists():
            _say_how_to_resume(
                f"The checkpoint {path} is good. To resume from it:", how_to_resume, console
            )
        return 2
    _say_how_to_resume(
        f"Stopped by {stop.signal.name}. To resume exactly from {path}:", how_to_resume, console
    )
    return 128 + stop.signal


def logdir_option(args: argparse.Namespace) -> list[str]:
    """Return the option as it was given, for the command that goes on."""
    return [] if args.logdir is None else ["--logdir", str(args.logdir)]


def _say_how_to_resume(why: str, arguments: Sequence[str], console: Console) -> None:
    console.print(why)
    command = [sys.executable, "-m", "stackelberg_fused", *arguments, "--resume"]
    console.print(f"  {shlex.join(command)}", soft_wrap=True)


def _fresh(args: argparse.Namespace, path: Path) -> Demo:
    """Return a new demo; an earlier checkpoint at `path` is renamed."""
    task = args.task or "language"
    given = _given(args)
    quick = {"steps": QUICK_STEPS} if args.quick else {}
    if args.lr is not None:
        given.setdefault("body_lr", args.lr)
    settings = Settings(
        **{
            "task": task,
            "seed": 0,
            "backend": "auto",
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            # Threads wait for each other in each operator: while another process uses one of two
            # cores, two threads are many times slower than one.
            "threads": 1,
            "quick": False,
            **DEFAULTS[task],
            **quick,
            **given,
        }
    )
    demo = _build(settings, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.replace(path.with_name("checkpoint.previous.pt"))
    return demo


def _resumed(args: argparse.Namespace, path: Path) -> Demo:
    """Return the demo of a checkpoint.

    Raises:
        ValueError: an option contradicts the checkpoint.
    """
    saved = checkpoint.load(path)
    settings = Settings.from_dict(saved["settings"])
    for name, value in _given(args).items():
        if value != getattr(settings, name):
            raise ValueError(
                f"--{name.replace('_', '-')} {value} contradicts {path}, which was made with "
                f"{getattr(settings, name)}; resume without it, or start anew in another --out"
            )
    demo = _build(settings, path)
    demo.load_state_dict(saved)
    return demo


def _build(settings: Settings, path: Path) -> Demo:
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {settings.device}: torch sees no CUDA device")
    torch.set_num_threads(settings.threads)
    return Demo(TASKS[settings.task](settings.quick), settings, path)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given on the command line."""
    names = (field.name for field in dataclasses.fields(Settings))
    given = {name: getattr(args, name, None) for name in names}
    if given["ratios"] is not None:
        given["ratios"] = tuple(dict.fromkeys(given["ratios"]))
    return {name: value for name, value in given.items() if value is not None}


def _announce(demo: Demo, console: Console) -> None:
    settings, first = demo.settings, demo.runs[0]
    size = sum(parameter.numel() for parameter in first.model.parameters())
    finished = all(run.step_count >= settings.steps for run in demo.runs)
    console.print(
        f"{demo.task.data['model']}, {size:,} parameters, on {demo.task.data['source']}\n"
        f"{len(demo.runs)} runs from step {first.step_count} to {settings.steps}, "
        f"seed {settings.seed}, {settings.device}, threads: {settings.threads}\n"
        + (
            "They are finished: only the report is written again."
            if finished
            else "Ctrl-C stops and saves a checkpoint; --resume continues from it."
        ),
        highlight=False,
    )


def _report(demo: Demo, out: Path, console: Console) -> None:
    """Print tables, verdict and a sample; write result.json, loss.png and report.html to `out`."""
    records = demo.records
    print_report(console, records, demo.task.loss_unit)
    best = min(demo.runs, key=lambda run: final_loss(run.record))
    if demo.task.sample and final_loss(best.record) < math.inf:
        console.rule(f"{best.record['name']} writes help text", align="left")
        console.print(demo.task.sample(best.model), markup=False, highlight=False)
        console.rule()
    write_result(out / "result.json", demo.settings.to_dict(), demo.task.data, records)
    files = ["result.json", "checkpoint.pt"]
    title = f"{demo.task.data['model']} on {demo.task.data['source']}, seed {demo.settings.seed}"
    try:
        draw(out / "loss.png", records, demo.task.loss_unit, title)
        files.insert(0, "loss.png")
    except ImportError:
        console.print("loss.png needs matplotlib: pip install it, then --resume draws the picture.")
    files.insert(0, write_page(out).name)
    console.print(f"In {out}: {', '.join(files)}", highlight=False)
