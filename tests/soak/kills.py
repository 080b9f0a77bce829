"""A training process is killed at random moments, resumed from its last checkpoint, and ends with the same bits."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from soak import report_of_part, scale_of_part
from torch import nn

import stackelberg_fused as sf

KILLS = 50
LONGEST_LIFE = 1.0  # seconds
EVERY = 2  # steps from one checkpoint to the next: many kills hit one that is being written
MORE_STEPS = 100  # after the last kill


def _training() -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8)
    )
    groups = [
        {"params": model[0].parameters(), "ema_decay": 0.99},
        {
            "params": model[2].parameters(),
            "state_dtype": "8bit",
            "update_every": 2,
            "update_every_grads": "mean",
        },
        {"params": model[4].parameters(), "role": "head", "amsgrad": True},
    ]
    optimizer = sf.StackelbergAdamW(groups, lr=1e-3, head_lr_ratio=5.0, max_grad_norm=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1000)
    return model, optimizer, schedule


def _save(path: Path, step: int, parts: tuple[Any, ...]) -> None:
    written = path.with_suffix(".part")
    torch.save((step, [part.state_dict() for part in parts]), written)
    os.replace(written, path)


def train(path: Path, last: int | None = None) -> int:
    """Train on from a checkpoint, where there is one, until a step."""
    parts, step = _training(), 0
    if path.exists():
        step, states = torch.load(path)
        for part, state in zip(parts, states, strict=True):
            part.load_state_dict(state)
    model, optimizer, schedule = parts
    while last is None or step < last:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(16, 64, generator=generator)
        model(inputs).square().mean().backward()
        optimizer.step(zero_grad=True)
        schedule.step()
        step += 1
        if step % EVERY == 0 or step == last:
            _save(path, step, parts)
    return step


def _killed_life(path: Path, after: float) -> None:
    child = os.fork()
    if not child:
        try:
            train(path)
        finally:
            os._exit(1)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the training ended by itself"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def main() -> None:
    torch.set_num_threads(1)  # so that a process may be forked
    kills = max(2, round(KILLS * scale_of_part()))
    _training()  # what torch imports on the way, every process would import again
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path, uninterrupted = Path(folder, "checkpoint.pt"), Path(folder, "uninterrupted.pt")
        half_written = 0
        for _ in range(kills):
            path.with_suffix(".part").unlink(missing_ok=True)
            _killed_life(path, moments.uniform(0.0, LONGEST_LIFE))
            half_written += path.with_suffix(".part").exists()
        steps = (torch.load(path)[0] if path.exists() else 0) + MORE_STEPS
        train(path, steps)
        train(uninterrupted, steps)
        assert _same(torch.load(path), torch.load(uninterrupted)), f"other bits, seed {seed}"
    report_of_part(
        {"kills": kills, "during_a_checkpoint": half_written, "steps": steps, "same_bits": True}
    )


if __name__ == "__main__":
    main()
