"""Callbacks for Lightning's Trainer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Any

import torch

from .reports import NO_AVERAGES, averages_of, averaging, checked_every, ours, report

PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # two names of one library


def _callback_class() -> Any:
    """The base class of that package which is in use; raises ImportError where there is none."""
    problems = []
    for name in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return import_module(name).Callback
        except ImportError as error:
            problems.append(str(error))
    raise ImportError(
        "stackelberg_fused.integrations.lightning needs the package lightning (or pytorch-lightning), which cannot be "
        f"imported: {'; '.join(problems)}"
    )


Callback: Any = _callback_class()


class AveragedWeights(Callback):
    """Validates with the averaged weights (`ema_decay`) during `fit`, and saves them in each checkpoint.

        Trainer(callbacks=[AveragedWeights()])

    - What ModelCheckpoint and EarlyStopping monitor is then measured with the averages.
    - A checkpoint's "state_dict" holds the weights that training goes on from; its "averaged_state_dict" the averages.
    - `trainer.validate`, `test` and `predict` by themselves run with the weights that they are given: load the averages
      first, or call them within `opt.ema_weights()`.

    Args:
        save: write "averaged_state_dict", a copy of the model in the checkpoint.
    """

    def __init__(self, save: bool = True) -> None:
        self._save = save
        self._swapped = ExitStack()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Raise ValueError if there are no averages."""
        if not averaging(trainer.optimizers):
            raise ValueError(f"AveragedWeights: {NO_AVERAGES}")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the averages, within `fit`."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._swapped.enter_context(averages_of(trainer.optimizers))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Give the weights back, before a checkpoint is saved."""
        self._swapped.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the weights back."""
        self._swapped.close()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the averaged weights to a checkpoint."""
        if not self._save:
            return
        with averages_of(trainer.optimizers):
            checkpoint["averaged_state_dict"] = {
                name: value.detach().clone() if isinstance(value, torch.Tensor) else value
                for name, value in pl_module.state_dict().items()
            }


class OptimizerLog(Callback):
    """Logs what the optimizers did to all loggers of the trainer.

        Trainer(callbacks=[OptimizerLog(every=50)], logger=...)

    Names begin with "optimizer/": norms and clip factors by player (with the optimizer's `max_grad_norm`), whether a
    gradient scaler skipped the step, launches, rates by group, the follower gap. The host waits for the device in the
    steps that are logged, and in no other.

    Args:
        every: steps, as `trainer.global_step` counts: of all optimizers together.
        gap: returns the follower gap, as `lambda: sf.stackelberg_value(...).follower_gap`; called every `every` steps.

    Raises:
        ValueError: `every` is no number of steps.
    """

    def __init__(self, every: int = 50, gap: Callable[[], float] | None = None) -> None:
        self._every, self._gap = checked_every(every), gap
        self._logged = 0  # intervals that are over

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count where a resumed run does."""
        self._logged = trainer.global_step // self._every

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a report, where a batch ended an interval."""
        over = trainer.global_step // self._every  # a batch may take several steps, or none
        if over == self._logged:
            return
        self._logged = over
        if trainer.loggers:
            values = report(ours(trainer.optimizers), self._gap)
            for logger in trainer.loggers:
                logger.log_metrics(values, step=trainer.global_step)
