"""A small LightningModule of a body and a head, which needs Lightning only where it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beside_torch import small_net
from torch import Tensor, nn

import stackelberg_fused as sf

ROLES = ("head", "body")  # in the order of alternating steps
mse = nn.functional.mse_loss


def groups_of(net: nn.Module) -> list[dict[str, Any]]:
    """Body and head of a `small_net`, with a rate for each, as torch's optimizers need it."""
    rates = {"body": 1e-3, "head": 1e-2}
    return [{**g, "lr": rates[g["role"]]} for g in sf.split_body_head(net, head="2")]


def of(kind: Any, **options: Any) -> Callable[[nn.Module], Any]:
    """What makes an optimizer of this class for a net."""
    return lambda net: kind(groups_of(net), **options)


def one_for_each(net: nn.Module) -> list[Any]:
    """Two of torch's optimizers, of body and head: as `step(role=...)` of one of ours."""
    from torch.optim import AdamW

    return [AdamW([group]) for group in groups_of(net)]


def small_module(make: Callable[[nn.Module], Any] | None, alternating: bool = False) -> Any:
    """A LightningModule around a `small_net`; `make` gives what `configure_optimizers` returns.

    Alternating steps are manual ones. It notes for each batch of a validation whether the weights were averages, but
    not of those before the training, and fails in one where `fails_in_validation` is set.
    """
    import lightning.pytorch as pl

    class Small(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()
            self.automatic_optimization = not alternating
            self.fails_in_validation = False
            self.validated: list[bool] = []

        def loss(self, batch: Any) -> Tensor:
            return mse(self.net(batch[0]), batch[1])

        def training_step(self, batch: Any, _: int) -> Tensor | None:
            if self.automatic_optimization:
                return self.loss(batch)
            given = self.optimizers()
            for role in ROLES:
                self.zero_grad()
                self.manual_backward(self.loss(batch))
                if isinstance(given, list):
                    given[role == "head"].step()
                else:
                    given.step(role=role)
            return None

        def validation_step(self, batch: Any, _: int) -> None:
            if not self.trainer.sanity_checking:
                if self.fails_in_validation:
                    raise ZeroDivisionError
                optimizers = self.trainer.optimizers
                self.validated.append(any(o._shared.is_swapped for o in optimizers))
            self.log("val", self.loss(batch))

        def configure_optimizers(self) -> Any:
            assert make is not None
            return make(self.net)

    return Small()


def quiet_trainer(**options: Any) -> Any:
    """A Trainer on the CPU that writes and prints nothing, unless options say so."""
    import lightning.pytorch as pl

    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger")
    given = {"max_epochs": 1, "accelerator": "cpu", **dict.fromkeys(quiet, False)}
    return pl.Trainer(**{**given, **options})
