"""Small optimizer runs of the kernels whose threads or blocks share data, and of what bounds and alignment go wrong in.

Each is run by `cpu` and by what a compiler emitted, to the same bits. Sizes leave ragged tiles of COUNTS elements,
which no other number in these kernels is by chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from named_schemes import NAMED
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.native.tables import TILE_ELEMENTS

from .backends import PtxCudaBackend, PtxTritonBackend
from .caught_launch import CaughtLaunch
from .interpreted import Interpreted, kernel_of
from .kernel import Kernel
from .launch import TOGETHER, Schedule
from .memory import Memory
from .races import Race, RaceDetector

COUNTS = 811, 37
SIZES = TILE_ELEMENTS + COUNTS[0], TILE_ELEMENTS - 1, COUNTS[1], TILE_ELEMENTS
COMPILERS = {"nvcc": PtxCudaBackend, "triton": PtxTritonBackend}


@dataclass(frozen=True)
class Run:
    """An optimizer's steps.

    Attributes:
        settings: of the optimizer.
        dtype: of parameters and gradients.
        head_dtype: of the head's; None: likewise.
        shapes: of the parameters; the last is of the head.
        steps: how many.
        shift: elements by which every buffer begins behind 16 bytes.
        special: gradients have infinities and NaN.
        zeroes: gradients are flat, and cleared by the launch.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    head_dtype: torch.dtype | None = None
    shapes: Sequence[tuple[int, ...]] = tuple((size,) for size in SIZES)
    steps: int = 1
    shift: int = 0
    special: bool = False
    zeroes: bool = False


def _of(name: str, **options: Any) -> Run:
    named = NAMED[name]
    settings = {"float32_state": "none", **named.settings, **options.pop("settings", {})}
    return Run(settings, named.scheme.param, **options)


# more tiles than a sum has copies, so that blocks share some
MANY_TILES = (*((COUNTS[1],) for _ in range(16)), *((size,) for size in SIZES))
_TURNS = {"update_every": {"body": 2}, "update_every_grads": "mean"}
_MANY = {"capturable": True, "max_grad_norm": 0.5, "update_every": 2, "update_every_grads": "mean"}
RUNS = {
    "plain": Run(),
    "plain, shifted": Run(shift=1, shapes=((TILE_ELEMENTS,), (COUNTS[1],))),
    "clip": Run({"max_grad_norm": 0.5}, shapes=MANY_TILES),
    "clip, shifted": Run({"max_grad_norm": 0.5}, shift=1, shapes=((TILE_ELEMENTS,), (COUNTS[1],))),
    "clip, special": Run({"max_grad_norm": 0.5}, special=True),
    "counted": Run({"capturable": True}),
    "turns": Run({**_TURNS, "capturable": True}, steps=2),
    "zeroing": Run(_TURNS, steps=2, zeroes=True),
    "ball": Run({"constraint": sf.L2Ball(1.0), "ema_decay": 0.9}, shapes=MANY_TILES),
    "simplex": Run({"constraint": sf.Simplex(), "ema_decay": 0.9}, shapes=((2, 301), (3, 7))),
    "8bit": _of("8bit"),
    "8bit, special": _of("8bit", special=True),
    "8bit, shifted": _of("8bit", shift=1, shapes=((TILE_ELEMENTS,), (COUNTS[1],))),
    "split8-8bit": _of("split8-8bit"),
    # a ball of float32 in a launch for low precision
    "everything": Run(
        {**_MANY, "constraint": {"head": sf.L2Ball(1.0)}, **NAMED["8bit"].settings},
        torch.bfloat16,
        torch.float32,
        shapes=((COUNTS[1],), (TILE_ELEMENTS,), (TILE_ELEMENTS + COUNTS[0],)),
        steps=2,
    ),
    **{f"{name}, zeroing": _of(name, settings=_TURNS, steps=2, zeroes=True) for name in NAMED},
    **{f"{name}, zeroing alone": _of(name, zeroes=True) for name in NAMED},
}


def _buffer(run: Run, i: int, draw: torch.Generator) -> Tensor:
    """New values of parameter i."""
    shape, dtype = run.shapes[i], run.dtype
    if i == len(run.shapes) - 1:
        dtype = run.head_dtype or dtype
    values = torch.randn(shape, generator=draw).to(dtype)
    whole = torch.empty(values.numel() + 16, dtype=dtype)
    at = -whole.data_ptr() % 16 // whole.element_size() + run.shift
    return whole[at : at + values.numel()].view(shape).copy_(values)


def results(name: str, backend: Any) -> list[Tensor]:
    """Parameters and state after the steps of a run, as bytes."""
    run = RUNS[name]
    draw = torch.Generator().manual_seed(0)
    params = [nn.Parameter(_buffer(run, i, draw)) for i in range(len(run.shapes))]
    groups = [{"params": params[:-1]}, {"params": params[-1:], "role": "head"}]
    settings = {**run.settings, **({"grads": "flat"} if run.zeroes else {})}
    optimizer = sf.StackelbergAdamW(groups, lr=0.01, backend=backend, **settings)
    for _ in range(run.steps):
        if run.zeroes:
            optimizer.zero_grad()  # gives each its place
        for i, p in enumerate(params):
            grad = _buffer(run, i, draw)
            p.grad = p.grad.copy_(grad) if run.zeroes else grad
            if run.special:
                p.grad.view(-1)[:: p.numel() // 2] = float("inf")
                p.grad.view(-1)[1] = float("nan")
        optimizer.step(zero_grad=run.zeroes)
    tensors = [
        *params,
        *(p.grad for p in params if run.zeroes),
        *(t for p in params for t in optimizer.state[p].values()),
    ]
    return [_bytes(t.detach()) for t in tensors if torch.is_tensor(t) and t.numel()]


def _bytes(tensor: Tensor) -> Tensor:
    """Its bytes, in which every NaN is the same."""
    if tensor.is_floating_point():
        tensor = torch.where(tensor.isnan(), float("nan"), tensor)
    return tensor.contiguous().view(-1).view(torch.uint8)


@cache
def expected(name: str) -> list[Tensor]:
    """The results of `cpu`."""
    return results(name, "cpu")


Change = Callable[[CaughtLaunch], Kernel]


def unchanged(caught: CaughtLaunch) -> Kernel:
    return kernel_of(caught.ptx, caught.kernel)


@dataclass
class Found:
    """What the checks found in a run.

    Attributes:
        races: of each launch, by the kernel's name.
        equal: the results are those of `cpu`.
        instructions: the most of a launch.
    """

    races: list[tuple[str, Counter[Race]]]
    equal: bool
    instructions: int


def check(
    name: str, compiler: str, change: Change = unchanged, schedule: Schedule = TOGETHER
) -> Found:
    """Run what a compiler emitted.

    Raises:
        Fault: a check of an access failed.
    """
    detectors: list[tuple[str, RaceDetector]] = []

    def observers(caught: CaughtLaunch, memory: Memory) -> Sequence[RaceDetector]:
        found = RaceDetector(caught.grid * caught.threads, caught.threads, memory)
        detectors.append((caught.kernel, found))
        return [found]

    wanted = expected(name)
    executor = Interpreted(schedule, None, observers, change)
    found = results(name, COMPILERS[compiler](executor))
    equal = all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    races = [(kernel, detector.races()) for kernel, detector in detectors]
    return Found(races, equal, max(launch.instructions for launch in executor.launches))
