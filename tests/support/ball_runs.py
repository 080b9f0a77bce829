"""Optimizers with balls over parameters that are laid out over ranks in some way, or not at all."""

from __future__ import annotations

from typing import Any

import torch
from backends import chosen
from cases import normal
from sharded_layouts import lay_out
from torch import Tensor, nn
from wrapped_models import whole

import stackelberg_fused as sf

# odd sizes: some ranks hold less than others, or nothing
SHAPES = [(7, 5), (70, 100), (1, 3), (2, 7), (9,), (2,)]
HEADS = (3, 5)
BODIES = (0, 1, 2, 4)
BALLS = {"body": sf.L2Ball(2.0), "head": sf.L2Ball(0.5)}


def values(shift: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    # of all sizes, so that a sum with rounding would depend on its order
    return [
        (normal(shape, shift + i) * 10.0 ** (i - 3)).to(dtype) for i, shape in enumerate(SHAPES)
    ]


def groups_of(params: list[Any], **of_body: Any) -> list[dict[str, Any]]:
    heads, bodies = ([params[i] for i in where] for where in (HEADS, BODIES))
    return [{"params": bodies, **of_body}, {"params": heads, "role": "head"}]


class BallRun:
    """An optimizer of parameters that are laid out in some way; None: not sharded."""

    def __init__(
        self,
        layout: str | None,
        backend: str,
        rule: Any = sf.StackelbergAdamW,
        dtype: torch.dtype = torch.float32,
        **how: Any,
    ) -> None:
        self.layout, self.dtype = layout, dtype
        self.params = [nn.Parameter(p) for p in self.laid_out(values(0, dtype))]
        how = {"lr": 0.1, "constraint": BALLS, "backend": chosen(backend)[0], **how}
        self.optimizer = rule(groups_of(self.params), **how)

    def laid_out(self, values: list[Tensor]) -> list[Any]:
        return values if self.layout is None else lay_out(values, self.layout)

    def give(self, number: int, of: tuple[int, ...] = (*BODIES, *HEADS)) -> None:
        """Gradients of a step, of these parameters."""
        grads = self.laid_out(values(50 * number + 20, self.dtype))
        for i, (p, grad) in enumerate(zip(self.params, grads, strict=True)):
            p.grad = grad if i in of else None

    def step(self, number: int, of: tuple[int, ...] = (*BODIES, *HEADS), **how: Any) -> None:
        self.give(number, of)
        self.optimizer.step(**how)

    def norm(self, which: tuple[int, ...]) -> float:
        return float(
            torch.cat([whole(self.params[i].detach()).double().view(-1) for i in which]).norm()
        )

    def held(self) -> list[Tensor]:
        """Whole weights and state."""
        found = [whole(p.detach()) for p in self.params]
        for p in self.params:
            values = self.optimizer.state[p].values()
            found += [whole(v) if isinstance(v, Tensor) else torch.tensor(v) for v in values]
        return found


def assert_equal(ours: BallRun, expected: BallRun) -> None:
    for a, b in zip(ours.held(), expected.held(), strict=True):
        assert torch.equal(a, b), (a, b)
