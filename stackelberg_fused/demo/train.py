"""`python -m stackelberg_fused train`: one learning rate against a slow body and a fast head.

Trains a small model first with torch's AdamW at one rate, then with StackelbergAdamW at several
head/body ratios, all from the same weights and on the same batches. The control has the best
single rate of a scan, which stands in `settings.py` with the other choices.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import checkpoint
from .plot import draw
from .report import final_loss, print_report, write_result
from .runs import Demo
from .settings import DEFAULTS, QUICK_STEPS, Settings
from .tasks import TASKS
from .trainer import Trainer

# The models are too small to feed more threads than this.
MOST_THREADS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options without a default here: `--resume` has to know which ones were given."""
    add = parser.add_argument
    add("--task", choices=TASKS, help="what to train (default: language)")
    add("--steps", type=_positive(int), help="steps of each run")
    add("--ratios", type=_positive(float), nargs="+", metavar="R", help="head/body ratios")
    add("--lr", type=_positive(float), help="peak rate of the control, and of every body")
    add("--body-lr", type=_positive(float), help="peak rate of every body but the control's")
    add("--seed", type=int, help="of weights and batches (default: 0)")
    add("--out", type=Path, metavar="DIR", help="where the files go (default: runs/TASK)")
    add("--resume", action="store_true", help="go on from DIR/checkpoint.pt, exactly")
    add("--backend", help="of StackelbergAdamW (default: auto)")
    add("--device", help="cpu or cuda (default: cuda where there is one)")
    add("--threads", type=_positive(int), help=f"torch's (default: its own, <= {MOST_THREADS})")
    add("--quick", action="store_true", default=None, help="a tiny model and few steps: seconds")


def run(args: argparse.Namespace) -> int:
    """Train and report; returns the exit code (128 + the signal's number when one stopped it)."""
    out = args.out or Path("runs") / (args.task or "language")
    path = out / "checkpoint.pt"
    console = Console()
    try:
        demo = _resumed(args, path) if args.resume else _fresh(args, path)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _announce(demo, console)
    try:
        with checkpoint.stop_between_steps() as stop:
            demo.train(stop, console)
    except KeyboardInterrupt:  # a second Ctrl-C: the last checkpoint is all there is
        stop.signal = stop.signal or checkpoint.SIGINT
    if stop:
        console.print(f"Stopped by {stop.signal.name}. To go on exactly where {path} is:")
        console.print(f"  python -m stackelberg_fused train --out {out} --resume", soft_wrap=True)
        return stop.exit_code
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
            "threads": min(torch.get_num_threads(), MOST_THREADS),
            "quick": False,
            **DEFAULTS[task],
            **quick,
            **given,
        }
    )
    demo = _demo(settings, path)
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
    demo = _demo(settings, path)
    demo.load_state_dict(saved)
    return demo


def _demo(settings: Settings, path: Path) -> Demo:
    torch.set_num_threads(settings.threads)
    task = TASKS[settings.task](settings.quick)
    # Building it refuses an impossible backend or device now, not after the control's run.
    Trainer(task, settings, 1)
    return Demo(task, settings, path)


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    names = (field.name for field in dataclasses.fields(Settings))
    given = {name: getattr(args, name, None) for name in names}
    if given["ratios"] is not None:
        given["ratios"] = tuple(dict.fromkeys(given["ratios"]))
    return {name: value for name, value in given.items() if value is not None}


def _announce(demo: Demo, console: Console) -> None:
    settings, model = demo.settings, demo.task.model()
    size = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"{demo.task.data['model']}, {size:,} parameters, on {demo.task.data['source']}; "
        f"{demo.left} runs of {settings.steps} steps to go, seed {settings.seed}; "
        f"{settings.device}, {settings.threads} threads. Ctrl-C stops, --resume goes on.",
        highlight=False,
    )


def _report(demo: Demo, out: Path, console: Console) -> None:
    """Tables, verdict and a sample on the terminal; result.json and loss.png in `out`."""
    records = [run["record"] for run in demo.finished]
    print_report(console, records, demo.task.loss_unit)
    if demo.task.sample:
        best = min(demo.finished, key=lambda run: final_loss(run["record"]))
        model = demo.task.model()
        model.load_state_dict(best["model"])
        console.rule(f"{best['record']['name']} continues the help text", align="left")
        console.print(demo.task.sample(model), markup=False, highlight=False)
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


def _positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse
