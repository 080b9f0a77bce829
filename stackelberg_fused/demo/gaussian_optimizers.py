"""The optimizers of the Gaussians: ours with one rate or one for each kind, and six of torch's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..optimizers.adam import StackelbergAdam

EPS = 1e-15


class GaussianOptimizer(ABC):
    """Moves the parameters of all kinds, and has them replaced by ones with other rows.

    Attributes:
        params: by kind, those of now.
        launches: kernels so far; None where nobody counts.
    """

    def __init__(self, params: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        self.params = {kind: nn.Parameter(value) for kind, value in params.items()}
        self.rates = dict(rates)

    @property
    def launches(self) -> int | None:
        return None

    @abstractmethod
    def set_factor(self, factor: float) -> None:
        """Set all rates to this share of what they were given as."""

    @abstractmethod
    def step(self) -> None:
        """Step, and clear the gradients."""

    @abstractmethod
    def _replace(self, kind: str, new: nn.Parameter, rows: Tensor) -> None: ...

    def replace(self, params: Mapping[str, Tensor], rows: Tensor) -> None:
        """Go on with other parameters, whose rows take the state of old ones, or begin anew (-1)."""
        for kind, value in params.items():
            new = nn.Parameter(value)
            self._replace(kind, new, rows)
            self.params[kind] = new


class ByKind(GaussianOptimizer):
    """A group for each kind, all of them in one launch."""

    def __init__(self, params: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        super().__init__(params, rates)
        groups = [
            {"params": [p], "lr": rates[kind], "name": kind} for kind, p in self.params.items()
        ]
        self.optimizer = StackelbergAdam(groups, eps=EPS)

    @property
    def launches(self) -> int | None:
        return self.optimizer.launches

    def set_factor(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = factor * self.rates[group["name"]]

    def step(self) -> None:
        self.optimizer.step(zero_grad=True)

    def _replace(self, kind: str, new: nn.Parameter, rows: Tensor) -> None:
        self.optimizer.replace(self.params[kind], new, rows)


class OneRate(ByKind):
    """One group of everything, at the rate of the first kind."""

    def __init__(self, params: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        GaussianOptimizer.__init__(self, params, rates)
        self._rate = next(iter(rates.values()))
        self.optimizer = StackelbergAdam(list(self.params.values()), lr=self._rate, eps=EPS)

    def set_factor(self, factor: float) -> None:
        self.optimizer.param_groups[0]["lr"] = factor * self._rate


class SixAdams(GaussianOptimizer):
    """`torch.optim.Adam(fused=True)` for each kind, with surgery on its state by hand."""

    def __init__(self, params: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        super().__init__(params, rates)
        self._optimizers = {
            kind: torch.optim.Adam([p], lr=rates[kind], eps=EPS, fused=True)
            for kind, p in self.params.items()
        }

    def set_factor(self, factor: float) -> None:
        for kind, optimizer in self._optimizers.items():
            optimizer.param_groups[0]["lr"] = factor * self.rates[kind]

    def step(self) -> None:
        for optimizer in self._optimizers.values():
            optimizer.step()
            optimizer.zero_grad()

    def _replace(self, kind: str, new: nn.Parameter, rows: Tensor) -> None:
        optimizer = self._optimizers[kind]
        state = optimizer.state.pop(self.params[kind], None)
        optimizer.param_groups[0]["params"][0] = new
        if state is None:
            return
        fresh = (rows < 0).view(-1, *[1] * (new.dim() - 1))
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name][rows.clamp(min=0)].masked_fill(fresh, 0.0)
        optimizer.state[new] = state
