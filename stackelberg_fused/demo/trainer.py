"""One training run that can stop after any step and resume with bit-identical results."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from ..groups.split import split_body_head
from ..optimizers.adam import StackelbergAdamW
from ..report.recorder import Recorder
from .follower_gap import follower_gap
from .settings import Settings
from .tasks import (
    Batch,
    Task,
    cross_entropy,
    evaluate,
)


def warmup_cosine(step: int, steps: int, warmup: float, final: float) -> float:
    """Return the schedule's factor on the peak rates: linear warm-up, then cosine decay to `final`.

    One factor applies to all groups, so that the ratio between their rates never changes.

    Args:
        step: the number of the coming step, from 0.
        steps: of the whole run.
        warmup: share of the steps over which the rates rise.
        final: the factor at the end.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, steps - rising)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


class Trainer:
    """Run `index` of the demo: run 0 uses torch's AdamW at one rate, run i > 0 the ratio `settings.ratios[i - 1]`.

    Initial weights and the order of batches depend only on the seed, so all runs share them. `record` holds the
    data of the report and is saved in the checkpoint.
    """

    def __init__(self, task: Task, settings: Settings, index: int) -> None:
        self.task, self.settings = task, settings
        self.device = torch.device(settings.device)
        self.validation = [self._to_device(batch) for batch in task.validation]
        torch.manual_seed(settings.seed)
        self.model = task.model().to(self.device)
        with torch.no_grad():
            for parameter in self.model.get_submodule(task.head).parameters():
                parameter.mul_(settings.head_scale)
        self.batches = torch.Generator().manual_seed(settings.seed)
        self.optimizer, description = self._make_optimizer(index)
        schedule = partial(
            warmup_cosine,
            steps=settings.steps,
            warmup=settings.warmup,
            final=settings.final,
        )
        self.scheduler = LambdaLR(self.optimizer, schedule)
        self.step_count = 0
        self.recorder: Recorder | None = None  # of what `stackelberg report` shows
        self.record: dict[str, Any] = {
            **description,
            "train_loss": [],
            "validation": [],  # (step, loss, share of correct predictions)
            "step_us": [],
            "iteration_us": [],
        }

    def _make_optimizer(self, index: int) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
        settings = self.settings
        groups = split_body_head(self.model, head=self.task.head, no_decay=True)
        shared: dict[str, Any] = {"betas": settings.betas, "weight_decay": settings.weight_decay}
        if index == 0:
            # fused=True is torch's fastest implementation: step() times are compared fairly.
            control = torch.optim.AdamW(groups, lr=settings.lr, fused=True, **shared)
            return control, {
                "name": "torch AdamW",
                "ratio": None,
                "body_lr": settings.lr,
                "head_lr": settings.lr,
                "backend": "torch fused",
            }
        ratio = settings.ratios[index - 1]
        optimizer = StackelbergAdamW(
            groups,
            lr=settings.body_lr,
            head_lr_ratio=ratio,
            backend=settings.backend,
            **shared,
        )
        return optimizer, {
            "name": f"ratio {ratio:g}",
            "ratio": ratio,
            "body_lr": settings.body_lr,
            "head_lr": settings.body_lr * ratio,
            "backend": optimizer.backend,
        }

    @property
    def finished(self) -> bool:
        """True once the run has made its last step and evaluation."""
        return self.evaluations == len(self.settings.evaluation_steps())

    @property
    def evaluations(self) -> int:
        return len(self.record["validation"])

    @property
    def validation_loss(self) -> float:
        """The loss of the last evaluation."""
        return self.record["validation"][-1][1]

    def turn(self) -> Iterator[None]:
        """Train up to the next evaluation, and evaluate; yield at each point where the run may stop."""
        goal = self.settings.evaluation_steps()[self.evaluations]
        while self.step_count < goal:
            self.advance()
            if self.step_count < goal:
                yield
        self.evaluate()
        yield

    def evaluate(self) -> None:
        """Append a point to the validation curve."""
        loss, accuracy = evaluate(self.model, self.validation)
        self.record["validation"].append((self.step_count, loss, accuracy))
        if self.recorder:
            gap = follower_gap(self.task, self.model, self.step_count, self.settings)
            self.recorder.evaluation(self.step_count, loss, accuracy=accuracy, **gap)

    def advance(self) -> None:
        """Train on one batch: forward, backward, optimizer step."""
        began = time.perf_counter()
        batch = self._to_device(self.task.batch(self.batches))
        loss, _ = cross_entropy(self.model, batch)
        loss.backward()
        self._synchronize()
        before = time.perf_counter()
        self.optimizer.step()
        self._synchronize()
        after = time.perf_counter()
        if self.recorder:
            step_us = (after - before) * 1e6
            self.recorder.step(self.step_count + 1, loss, self.optimizer, step_us=step_us)
            began += time.perf_counter() - after  # no part of the iteration
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step_count += 1
        self.record["train_loss"].append(loss.item())
        self.record["step_us"].append((after - before) * 1e6)
        self.record["iteration_us"].append((time.perf_counter() - began) * 1e6)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next step depends on, and the record."""
        return {
            "step_count": self.step_count,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "batches": self.batches.get_state(),
            "record": self.record,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step_count = state["step_count"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.batches.set_state(state["batches"])
        # The backend is the choice of this machine, which may differ from that of the checkpoint.
        self.record = {**state["record"], "backend": self.record["backend"]}

    def _to_device(self, batch: Batch) -> Batch:
        inputs, targets = batch
        return inputs.to(self.device), targets.to(self.device)

    def _synchronize(self) -> None:
        """Wait for the GPU. Kernels run after their launch, so step() would otherwise seem to take no time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
