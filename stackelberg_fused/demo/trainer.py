"""One training run that can stop after any step and go on as if it never had."""

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
from .settings import Settings
from .tasks import (
    Batch,
    Task,
    cross_entropy,
    evaluate,
)


def warmup_cosine(step: int, steps: int, warmup: float, final: float) -> float:
    """Factor on every group's peak rate, so that the ratio between the groups never changes."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    progress = (step - rising) / max(1, steps - rising)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


class Trainer:
    """Run `index` of the demo: 0 is torch's AdamW at one rate, the rest have a ratio each.

    Initial weights and the order of batches depend on the seed alone, so they are the same in
    every run. `record` collects what the report needs and travels with the checkpoint.
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
        self.optimizer, described = self._make_optimizer(index)
        schedule = partial(
            warmup_cosine,
            steps=settings.steps,
            warmup=settings.warmup,
            final=settings.final,
        )
        self.scheduler = LambdaLR(self.optimizer, schedule)
        self.step_count = 0
        self.record: dict[str, Any] = {
            **described,
            "train_loss": [],
            "validation": [],  # (step, loss, share of right predictions)
            "step_us": [],
            "iteration_us": [],
        }

    def _make_optimizer(self, index: int) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
        settings = self.settings
        groups = split_body_head(self.model, head=self.task.head, no_decay=True)
        shared: dict[str, Any] = {"betas": settings.betas, "weight_decay": settings.weight_decay}
        if index == 0:
            # fused=True is torch's fastest, so that the comparison of step() times is a fair one.
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
        """Trained to the end, and evaluated there."""
        return self.evaluations == len(self.settings.evaluation_steps())

    @property
    def evaluations(self) -> int:
        return len(self.record["validation"])

    @property
    def validation_loss(self) -> float:
        """As of the last evaluation."""
        return self.record["validation"][-1][1]

    def turn(self) -> Iterator[None]:
        """Train up to the next evaluation, and evaluate; yields wherever it can be left."""
        goal = self.settings.evaluation_steps()[self.evaluations]
        while self.step_count < goal:
            self.advance()
            if self.step_count < goal:
                yield
        self.evaluate()
        yield

    def evaluate(self) -> None:
        """Add a point to the validation curve."""
        self.record["validation"].append((self.step_count, *evaluate(self.model, self.validation)))

    def advance(self) -> None:
        """One batch, one update."""
        began = time.perf_counter()
        batch = self._to_device(self.task.batch(self.batches))
        loss, _ = cross_entropy(self.model, batch)
        loss.backward()
        self._synchronize()
        before = time.perf_counter()
        self.optimizer.step()
        self._synchronize()
        after = time.perf_counter()
        self.optimizer.zero_grad()
        self.scheduler.step()
        self.step_count += 1
        self.record["train_loss"].append(loss.item())
        self.record["step_us"].append((after - before) * 1e6)
        self.record["iteration_us"].append((time.perf_counter() - began) * 1e6)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
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
        # The backend is the one this machine chose, not the one that the checkpoint was made with.
        self.record = {**state["record"], "backend": self.record["backend"]}

    def _to_device(self, batch: Batch) -> Batch:
        inputs, targets = batch
        return inputs.to(self.device), targets.to(self.device)

    def _synchronize(self) -> None:
        """Kernels on a GPU run later than their launch: wait, or step() would look free."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
