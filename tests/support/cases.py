"""The one generator of test cases: options of each rule, sizes dealt over groups, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from inspect import signature
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import stackelberg_fused as sf

OURS = {"adam": sf.StackelbergAdam, "adamw": sf.StackelbergAdamW, "sgd": sf.StackelbergSGD}
TORCHS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")

# every size at which a tile, a vector or a lane ends one element early, exactly, or one element late
SIZES = (0, 1, 15, 16, 17, 63, 4095, 4096, 4097)
SMALL_SIZES = (0, 1, 15, 16, 17, 63)
LARGE_SIZE = 100_001


@dataclass(frozen=True)
class Options:
    """A rule with its settings; the rate comes from the group. Of `mixed` ones each group has another rule."""

    rule: str
    settings: dict[str, Any] = field(default_factory=dict)
    mixed: bool = False

    def __str__(self) -> str:
        if self.mixed:
            return "mixed"
        parts = [f"{k}={v}" for k, v in self.settings.items() if v is not False and v != 0]
        return "-".join([self.rule, *parts]).replace(" ", "")

    def ours(self, params: Any, **more: Any) -> Any:
        return OURS[self.rule](params, **{**self.settings, **more})

    def torchs(self, params: Any, **more: Any) -> Any:
        own = sorted(self.settings.keys() - signature(TORCHS[self.rule]).parameters.keys())
        if own:
            pytest.skip(f"torch's namesake has no {', '.join(own)}")
        return TORCHS[self.rule](params, **{"foreach": False, **self.settings, **more})


def _product(rule: str, **choices: Sequence[Any]) -> list[Options]:
    return [Options(rule, dict(zip(choices, c, strict=True))) for c in product(*choices.values())]


def all_options() -> list[Options]:
    """Every combination of the settings that change what is computed."""
    adam = {
        "betas": [(0.9, 0.999), (0.0, 0.99), (0.5, 0.9)],
        "weight_decay": [0.0, 0.1],
        "amsgrad": [False, True],
        "maximize": [False, True],
    }
    sgd = {"weight_decay": [0.0, 0.1], "maximize": [False, True]}
    no_momentum = _product("sgd", momentum=[0.0], dampening=[0.0, 0.3], **sgd)
    momentum = _product("sgd", momentum=[0.9], dampening=[0.0, 0.3], **sgd)
    nesterov = _product("sgd", momentum=[0.9], nesterov=[True], **sgd)
    return _product("adam", **adam) + _product("adamw", **adam) + no_momentum + momentum + nesterov


def kernel_options() -> list[Options]:
    """Every specialisation of the kernels, each option at least once, and no combination twice."""
    return [
        Options("adam"),
        Options("adam", {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-6}),
        Options("adam", {"amsgrad": True, "maximize": True}),
        Options("adam", {"amsgrad": True, "weight_decay": 0.1}),
        Options("adamw", {"weight_decay": 0.1}),
        Options("adamw", {"amsgrad": True, "weight_decay": 0.1, "maximize": True}),
        Options("adamw", {"betas": (0.0, 0.99)}),
        Options("sgd"),
        Options("sgd", {"weight_decay": 0.1, "maximize": True}),
        Options("sgd", {"momentum": 0.9, "dampening": 0.3}),
        Options("sgd", {"momentum": 0.9, "weight_decay": 0.1, "maximize": True}),
        Options("sgd", {"momentum": 0.9, "nesterov": True}),
        Options("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        Options("adamw", {"cautious": True, "weight_decay": 0.1}),
        Options(
            "adamw", {"cautious": True, "amsgrad": True, "weight_decay": 0.1, "maximize": True}
        ),
    ]


MIXED = Options("adamw", {"weight_decay": 0.0}, mixed=True)


def sizes_for(num_groups: int, large: bool = False) -> list[list[int]]:
    """Sizes of the parameters of each group: every one of SIZES once, or in 465 groups the small ones and 4097."""
    if large:
        return [[LARGE_SIZE] for _ in range(num_groups)]
    if num_groups <= len(SIZES):
        return [list(SIZES[i::num_groups]) for i in range(num_groups)]
    sizes = [[SMALL_SIZES[i % len(SMALL_SIZES)]] for i in range(num_groups)]
    sizes[num_groups // 2] = [4097]
    return sizes


def normal(size: int | tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (size,) if isinstance(size, int) else size
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@lru_cache(maxsize=8192)
def gradient(size: int | tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Signs, magnitudes over seven decades, and one zero in ten. Shared: clone it before it becomes a `.grad`."""
    value = normal(size, seed, dtype)
    decades = torch.randint(-4, 3, value.shape, generator=torch.Generator().manual_seed(seed + 1))
    kept = torch.rand(value.shape, generator=torch.Generator().manual_seed(seed + 2)) > 0.1
    return (value * 10.0**decades * kept).to(dtype)


def two_params() -> list[nn.Parameter]:
    """Parameters of 3 and 5 elements."""
    return [nn.Parameter(normal(n, n)) for n in (3, 5)]


def groups_of(
    sizes: list[list[int]],
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    mixed: bool = False,
) -> list[dict[str, Any]]:
    """Param groups with these sizes, each at its own rate; the last third is the head, where there are several.

    With `mixed` they take turns between all of `kernel_options`.
    """
    turns = [{"rule": o.rule, **o.settings} for o in kernel_options()] if mixed else [{}]
    heads = len(sizes) // 3 if len(sizes) > 2 else len(sizes) - 1
    groups = []
    for i, group in enumerate(sizes):
        params = [
            torch.nn.Parameter(normal(n, seed=1000 * i + k, dtype=dtype).to(device))
            for k, n in enumerate(group)
        ]
        role = "head" if i >= len(sizes) - heads else "body"
        rate = (1e-1 if role == "head" else 1e-2) * (1 + i % 9)
        groups.append({"params": params, "lr": rate, "role": role, **turns[i % len(turns)]})
    return groups


def set_gradients(groups: list[dict[str, Any]], step: int, skip_every: int = 0) -> None:
    """A new gradient tensor for every parameter; every `skip_every`-th parameter gets None instead."""
    number = 0
    for group in groups:
        for p in group["params"]:
            number += 1
            skipped = skip_every and number % skip_every == 0
            new = None if skipped else gradient(tuple(p.shape), 7919 * step + number, p.dtype)
            p.grad = None if new is None else new.to(p.device, copy=True)


def pair(options: Options, sizes: list[Any], backend: Any) -> tuple[Any, Any]:
    """Two optimizers over equal parameters: one to be treated badly, one that leaves its parameters where they are."""
    make = [[torch.nn.Parameter(normal(n, i)) for i, n in enumerate(sizes)] for _ in range(2)]
    plain = options.ours(make[1], backend=backend, flatten=False)
    return options.ours(make[0], backend=backend), plain


def both(
    options: Options, backend: Any = "reference", num_groups: int = 1, **more: Any
) -> tuple[Any, Any]:
    """Ours and torch's over equal parameters of three shapes, dealt over groups."""
    sides = []
    for _ in range(2):
        params = [torch.nn.Parameter(normal(s, i)) for i, s in enumerate([(3, 5), (7,), ()])]
        sides.append([{"params": params[i::num_groups]} for i in range(num_groups)])
    return options.ours(sides[0], backend=backend, **more), options.torchs(sides[1], **more)


def step(*optimizers: Any, seed: int = 0, **how: Any) -> None:
    """One step of each with the same new gradients."""
    for optimizer in optimizers:
        set_gradients(optimizer.param_groups, seed)
        optimizer.step(**how)
