"""Callbacks for transformers' Trainer."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from ..warning import warn_caller
from .reports import NO_AVERAGES, averages_of, averaging, checked_every, ours, report

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError(
        f"stackelberg_fused.integrations.transformers needs the package transformers, which cannot be imported: {error}"
    ) from error

AVERAGED = "averaged"  # a folder within a checkpoint


class AveragedWeights(TrainerCallback):
    """Evaluates with the averaged weights (`ema_decay`), and saves them beside each checkpoint.

        trainer.add_callback(AveragedWeights(trainer))

    - `trainer.evaluate` and `trainer.predict` run with the averages, until training has ended and after it.
    - A checkpoint holds the weights that training goes on from; the averaged model lies in its folder "averaged", for
      `from_pretrained`.
    - With `load_best_model_at_end` the model ends as the averages of the best checkpoint.
    - `with callback.averages(): trainer.save_model(path)` saves the averages at any time.

    Args:
        trainer: it tells callbacks of an evaluation only when that is over, so `evaluate` and `predict` are wrapped.
        save: write the folders.
    """

    def __init__(self, trainer: Any, save: bool = True) -> None:
        self._trainer, self._save = trainer, save
        self._holds_best = False  # the model is no longer that of the optimizer
        for name in ("evaluate", "predict"):
            setattr(trainer, name, self._with_averages(getattr(trainer, name)))

    def averages(self) -> AbstractContextManager[None]:
        """Within this context the model holds its averages, if there are any."""
        return averages_of([] if self._holds_best else [self._trainer.optimizer])

    def _with_averages(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def averaged(*args: Any, **kwargs: Any) -> Any:
            with self.averages():
                return call(*args, **kwargs)

        return averaged

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise ValueError if there are no averages."""
        self._holds_best = False
        if not averaging([self._trainer.optimizer]):
            raise ValueError(f"AveragedWeights: {NO_AVERAGES}")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the averaged model within the checkpoint."""
        checkpoint = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if self._save and os.path.isdir(checkpoint):
            with self.averages():
                self._trainer.save_model(os.path.join(checkpoint, AVERAGED), _internal_call=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the averages of the best checkpoint, where its weights were loaded."""
        best = state.best_model_checkpoint
        if not args.load_best_model_at_end or best is None:
            return
        self._holds_best = True
        averaged, load = (
            os.path.join(best, AVERAGED),
            getattr(self._trainer, "_load_best_model", None),
        )
        if load is None or not os.path.isdir(averaged):
            warn_caller(
                f"AveragedWeights: {best} was judged by averages, but its own weights stay loaded"
            )
            return
        state.best_model_checkpoint = averaged
        try:
            load()
        finally:
            state.best_model_checkpoint = best


class OptimizerLog(TrainerCallback):
    """Logs what the optimizer did, by `trainer.log`, to all that Trainer reports to.

        trainer.add_callback(OptimizerLog(trainer, every=50))

    Names begin with "optimizer/": norms and clip factors by player (with the optimizer's `max_grad_norm`), whether a
    gradient scaler skipped the step, launches, rates by group, the follower gap. The host waits for the device in the
    steps that are logged, and in no other.

    Args:
        trainer: a callback gets no other way to its loggers.
        every: steps.
        gap: returns the follower gap, as `lambda: sf.stackelberg_value(...).follower_gap`; called every `every` steps.

    Raises:
        ValueError: `every` is no number of steps.
    """

    def __init__(
        self, trainer: Any, every: int = 50, gap: Callable[[], float] | None = None
    ) -> None:
        self._trainer, self._every, self._gap = trainer, checked_every(every), gap

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log a report."""
        if state.global_step % self._every == 0:
            values = report(ours([self._trainer.optimizer]), self._gap)
            if values:
                self._trainer.log(values)
