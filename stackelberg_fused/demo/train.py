"""`python -m stackelberg_fused train`: one learning rate against a slow body and a fast head.

Trains a small model with torch's AdamW at one rate and with StackelbergAdamW at several head/body
ratios, all from the same weights and on the same batches. The control has the best single rate of
a scan, which stands in `settings.py` with the other choices.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..cli import positive
from . import checkpoint
from .plot import draw
from .report import final_loss, print_report, write_result
from .runs import Demo
from .settings import DEFAULTS, QUICK_STEPS, Settings
from .tasks import TASKS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options without a default here: `--resume` has to know which ones were given."""
    add = parser.add_argument
    add("--task", choices=TASKS, help="what to train (default: language)")
    add("--steps", type=positive(int), help="steps of each run (default: language 800, digits 400)")
    add(
        "--ratios",
        type=positive(float),
        nargs="+",
        metavar="R",
        help="head/body ratios (default: 3 10 30)",
    )
    add(
        "--lr",
        type=positive(float),
        help="peak rate of the control, and without --body-lr of all (default: tuned)",
    )
    add(
        "--body-lr",
        type=positive(float),
        help="peak rate of the bodies but the control's (default: tuned)",
    )
    add("--head-scale", type=_number, metavar="S", help="start with S times the head (default: 1)")
    add("--seed", type=int, help="of weights and batches (default: 0)")
    add("--out", type=Path, metavar="DIR", help="where the files go (default: runs/TASK)")
    add("--resume", action="store_true", help="go on from DIR/checkpoint.pt, exactly")
    add("--backend", help="of StackelbergAdamW (default: auto)")
    add("--device", help="cpu or cuda (default: cuda where there is one)")
    add("--threads", type=positive(int), help="torch's (default: 1; 2 are faster on idle cores)")
    add("--quick", action="store_true", default=None, help="a tiny model and few steps: seconds")


def run(args: argparse.Namespace) -> int:
    """Train and report; returns the exit code (128 + the signal's number when one stopped it)."""
    out = args.out or Path("runs") / (args.task or "language")
    path = out / "checkpoint.pt"
    console = Console()
    try:
        demo = _resumed(args, path) if args.resume else _fresh(args, path)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _announce(demo, console)
    stop = checkpoint.StopRequest()
    try:
        with stop:
            demo.train(stop, console)
    except KeyboardInterrupt:  # the second Ctrl-C: what is on the disk is from before the first
        stop.signal = signal.SIGINT
    if stop.signal is not None:
        console.print(f"Stopped by {stop.signal.name}. To go on exactly where {path} ends:")
        again = shlex.join([sys.executable, "-m", "stackelberg_fused", "train", "--out", str(out)])
        console.print(f"  {again} --resume", soft_wrap=True)
        return 128 + stop.signal
    _report(demo, out, console)
    return 0


def _fresh(args: argparse.Namespace, path: Path) -> Demo:
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
            # Threads wait for each other in every operator: while another process has one of two
            # cores, two threads take many times as long as one does.
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
    """Raises ValueError when an option says something else than the checkpoint."""
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
    """The settings that the command line names."""
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
            "They are finished: only the report is made again."
            if finished
            else "Ctrl-C stops and keeps everything; --resume goes on from there."
        ),
        highlight=False,
    )


def _report(demo: Demo, out: Path, console: Console) -> None:
    """Tables, verdict and a sample on the terminal; result.json and loss.png in `out`."""
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
    console.print(f"In {out}: {', '.join(files)}", highlight=False)


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is negative or not finite")
    return value
