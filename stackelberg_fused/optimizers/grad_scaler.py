"""A gradient scaler that has steps look for infinities themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from ..engine.infinities import found_by_any
from ..layout.scaling import Search
from ..memory.sharding import Ranks
from ..torch_compat import refuse_unreduced_scaler, scale_of, scaler_record
from .player import Player
from .stepping import Stepping


class GradScaler(torch.amp.GradScaler):
    """`torch.amp.GradScaler` that reads gradients once less.

    torch's scaler reads and writes every gradient, one after the other, to look for infinities and to unscale it. This
    one leaves both to the step of the optimizers of this library, whose launch of gradient statistics, the one that
    clips, looks for infinities too. Which steps are skipped, the scale and the weights are as with torch's scaler, and
    state dicts load either way.

    Torch's way is taken by other optimizers, by one whose gradients `unscale_` unscaled, and by
    `step(optimizer, role="head")`, where that looks at all gradients of the optimizer. Pass `optimizer.player("head")`.

    - `.grad` keeps the scale of the loss after the step, unless `unscale_` was called. `max_grad_norm` clips by the
      norm without it.
    - A skipped step is called and moves nothing: `optimizer.last_step.skipped`. With `zero_grad=True` it clears.
    - float16 gradients are unscaled in float32.
    - `step` takes a closure, which has to scale its loss: infinities are looked for in the gradients that it leaves.
    - A gradient that overflows only as it is unscaled, by a scale below 1, counts as infinite.

    The ranks that hold shards of the parameters (DTensors: FSDP2, tensor parallelism) skip a step together, as with
    torch's. Others, such as those of FSDP1, are told of by `process_group`, as to `torch.distributed.fsdp`'s
    `ShardedGradScaler`.

    Args:
        device, init_scale, growth_factor, backoff_factor, growth_interval, enabled: as in `torch.amp.GradScaler`.
        process_group: ranks that are to skip a step as soon as one of them finds an infinity; each of them has to
            call `step`, or `unscale_`, of the same optimizers in the same order.

    Example:
        >>> model = nn.Linear(4, 1)
        >>> opt = sf.StackelbergAdamW(model.parameters(), max_grad_norm=1.0)
        >>> scaler = sf.GradScaler("cpu", init_scale=8.0)
        >>> for factor in (1.0, float("inf")):
        ...     loss = factor * model(torch.ones(3, 4)).square().mean()
        ...     scaler.scale(loss).backward()
        ...     scaler.step(opt)
        ...     scaler.update()
        ...     opt.zero_grad()
        ...     print(bool(opt.last_step.skipped), scaler.get_scale())
        False 8.0
        True 4.0
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        *,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            device, init_scale, growth_factor, backoff_factor, growth_interval, enabled
        )
        self._ranks: list[Ranks] = []
        if process_group is not None:
            refuse_unreduced_scaler()
            self._ranks.append(Ranks(process_group, device))

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """As in torch; for optimizers of this library with a closure too, by position or keyword.

        Args:
            optimizer: any optimizer, or a player.
            *args, **kwargs: of the optimizer's `step`.

        Raises:
            AssertionError: nothing was scaled, or there are no gradients, as in torch.
            RuntimeError: the optimizer was stepped since the last `update()`.
            ValueError, TypeError, RuntimeError: as the optimizer's own step.
        """
        looks = (
            self.is_enabled()
            and isinstance(optimizer, (Stepping, Player))
            and not optimizer._shared.options["differentiable"]
            and kwargs.get("role")
            is None  # torch's scaler looks at the other player's gradients too
        )
        closure = args[0] if args else kwargs.get("closure")
        if looks and closure is not None:
            # makes the scale, which the closure would make too late
            self.scale(torch.zeros((), device=_device_of(optimizer)))
        record = scaler_record(self, optimizer) if looks else None
        if record is None or record["stage"] is not OptState.READY:
            return super().step(optimizer, *args, **kwargs)
        search = Search(self._ranks)
        result = _step_with(search, scale_of(self), optimizer, args, kwargs)
        if not search.found:
            raise AssertionError("No inf checks were recorded for this optimizer.")
        # torch's update adds what other optimizers found to it
        found = (
            torch.stack(search.found).sum(0) if len(search.found) > 1 else search.found[0].clone()
        )
        record["found_inf_per_device"] = {found.device: found}
        record["stage"] = OptState.STEPPED
        return result

    def _unscale_grads_(
        self, optimizer: Any, *args: Any, **kwargs: Any
    ) -> dict[torch.device, Tensor]:
        """What torch's way finds, by device; agreed on by all ranks."""
        found: dict[torch.device, Tensor] = super()._unscale_grads_(optimizer, *args, **kwargs)
        if not self._ranks:
            return found
        total = found_by_any(list(found.values()), self._ranks, scale_of(self).device)
        return found or {total.device: total}  # a rank may have no gradients


def _device_of(optimizer: Stepping | Player) -> torch.device:
    params = (p for group in optimizer.param_groups for p in group["params"])
    return next((p.device for p in params), torch.device("cpu"))


def _step_with(
    search: Search, scale: Tensor, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Take a step whose gradients were scaled, and that looks for infinities; returns the closure's loss."""
    given = getattr(optimizer, "grad_scale", None)  # somebody may have scaled the loss before
    if given is not None:
        del optimizer.grad_scale
    attributes = optimizer._shared.from_scaler
    attributes.update(grad_scale=scale if given is None else scale * given, search=search)
    try:
        return optimizer.step(*args, **kwargs)
    finally:
        for name in ("grad_scale", "found_inf", "search"):
            attributes.pop(name, None)
