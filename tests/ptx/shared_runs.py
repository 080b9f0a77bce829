"""Small optimizer runs of the kernels whose threads or blocks share data, and of what bounds and alignment go wrong in.

Each is run by `cpu` and by what a compiler emitted, to the same bits, those of the sums that launches leave too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from .launch import TOGETHER, Observer, Schedule
from .memory import Memory
from .races import Race, RaceDetector

# Ragged tiles: of so many elements that every comparison of Triton's with the index of an element, of which a thread
# has 16 of a tile, is about the first that does not exist in one of them. No other number in these kernels is one of
# these by chance.
COUNTS = tuple(1024 * i + 148 + j for i in range(4) for j in range(4))
RAGGED = 811
# besides: all but one of a tile's elements, one, as many as a thread block takes in a round, and all
SIZES = TILE_ELEMENTS + RAGGED, TILE_ELEMENTS - 1, 1, 512, TILE_ELEMENTS
# which are in these kernels anyway
USUAL_NUMBERS = {0, 1, 256, 512}
COMPILERS = {"nvcc": PtxCudaBackend, "triton": PtxTritonBackend}


@dataclass(frozen=True)
class Run:
    """An optimizer's steps.

    Attributes:
        settings: of the optimizer.
        dtype: of parameters and gradients.
        head_dtype: of the head's; None: likewise.
        shapes: of the parameters.
        heads: how many of them, the last ones, are the head's.
        firsts: how many of them, the first ones, are a group with the dtype and the constraint of the head.
        steps: how many.
        shift: elements by which every buffer begins behind 16 bytes.
        special: gradients have infinities and NaN.
        zeroes: gradients are flat, and cleared by the launch.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    head_dtype: torch.dtype | None = None
    shapes: Sequence[tuple[int, ...]] = tuple((size,) for size in SIZES)
    heads: int = 1
    firsts: int = 0
    steps: int = 1
    shift: int = 0
    special: bool = False
    zeroes: bool = False

    @property
    def counts(self) -> set[int]:
        """Numbers of elements, of a ragged tile or of a row, that bounds are about."""
        ragged = {math.prod(shape) % TILE_ELEMENTS for shape in self.shapes}
        return {*ragged, *(shape[-1] for shape in self.shapes if len(shape) > 1)} - USUAL_NUMBERS


def _of(name: str, **options: Any) -> Run:
    named = NAMED[name]
    settings = {"float32_state": "none", **named.settings, **options.pop("settings", {})}
    return Run(settings, named.scheme.param, **{"shapes": NARROW, **options})


# more tiles than a sum has copies, so that blocks share some
MANY_TILES = tuple((size,) for size in (*COUNTS, *SIZES))
# Of fewer bits a thread has 4 elements 128 apart, or 4 in a row, in each round: each has to be the first that does not
# exist.
NARROWEST = (1,), (COUNTS[0],), (COUNTS[1] + 128,), (COUNTS[2] + 256,)
NARROW = *((size,) for size in SIZES), *NARROWEST[1:3]
FEW = (TILE_ELEMENTS,), (COUNTS[0],), (COUNTS[2],), (RAGGED,), (1,)
_TURNS = {"update_every": {"body": 2}, "update_every_grads": "mean"}
_MANY = {"capturable": True, "max_grad_norm": 0.5, "update_every": 2, "update_every_grads": "mean"}
_EVERYTHING: dict[str, Any] = {
    "settings": {**_MANY, "constraint": {"head": sf.L2Ball(1.0)}, **NAMED["8bit"].settings},
    "dtype": torch.bfloat16,
    "head_dtype": torch.float32,
}
RUNS = {
    "plain": Run(),
    "plain, shifted": Run(shift=1, shapes=FEW),
    "clip": Run({"max_grad_norm": 0.5}, shapes=MANY_TILES),
    "clip, shifted": Run({"max_grad_norm": 0.5}, shift=1, shapes=FEW),
    "clip, special": Run({"max_grad_norm": 0.5}, special=True, shapes=MANY_TILES),
    "counted": Run({"capturable": True}),
    "turns": Run({**_TURNS, "capturable": True}, steps=2),
    "zeroing": Run(_TURNS, steps=2, zeroes=True),
    "ball": Run({"constraint": sf.L2Ball(1.0), "ema_decay": 0.9}, shapes=MANY_TILES),
    "simplex": Run(
        {"constraint": sf.Simplex(), "ema_decay": 0.9},
        shapes=((2, 301), (1, 1), (1, 256), (4, 7)),
    ),
    "8bit": _of("8bit"),
    "8bit, special": _of("8bit", special=True),
    "8bit, shifted": _of("8bit", shift=1, shapes=FEW),
    "split8-8bit": _of("split8-8bit"),
    # a ball of float32 in a launch for low precision
    "everything": Run(
        **_EVERYTHING,
        shapes=(*NARROWEST, (TILE_ELEMENTS,), *NARROWEST, (TILE_ELEMENTS + RAGGED,)),
        heads=len(NARROWEST) + 1,
        steps=2,
    ),
    "everything, few": Run(
        **_EVERYTHING, shapes=((COUNTS[0],), (TILE_ELEMENTS + RAGGED,)), steps=2
    ),
    "everything, many": Run(
        **_EVERYTHING,
        shapes=tuple((size,) for size in (*COUNTS[:3], *COUNTS)),
        heads=len(COUNTS) + 1,
        firsts=1,
        steps=2,
    ),
    **{f"{name}, zeroing": _of(name, settings=_TURNS, steps=2, zeroes=True) for name in NAMED},
    **{f"{name}, zeroing alone": _of(name, zeroes=True) for name in NAMED},
}


def _buffer(run: Run, i: int, draw: torch.Generator) -> Tensor:
    """New values of parameter i."""
    shape, dtype = run.shapes[i], run.dtype
    if i < run.firsts or i >= len(run.shapes) - run.heads:
        dtype = run.head_dtype or dtype
    values = torch.randn(shape, generator=draw).to(dtype)
    whole = torch.empty(values.numel() + 16, dtype=dtype)
    at = -whole.data_ptr() % 16 // whole.element_size() + run.shift
    return whole[at : at + values.numel()].view(shape).copy_(values)


def results(name: str, backend: Any) -> list[Tensor]:
    """Parameters, state, and the sums and factors of the last launches, as bytes."""
    run = RUNS[name]
    draw = torch.Generator().manual_seed(0)
    params = [nn.Parameter(_buffer(run, i, draw)) for i in range(len(run.shapes))]
    body, head = params[run.firsts : -run.heads], params[-run.heads :]
    groups = [{"params": body}, {"params": head, "role": "head"}]
    if run.firsts:
        constraint = run.settings["constraint"]["head"]
        groups.insert(0, {"params": params[: run.firsts], "constraint": constraint})
    settings = {**run.settings, **({"grads": "flat"} if run.zeroes else {})}
    optimizer = sf.StackelbergAdamW(groups, lr=0.01, backend=backend, **settings)
    for _ in range(run.steps):
        if run.zeroes:
            optimizer.zero_grad()  # gives each its place
        for i, p in enumerate(params):
            grad = _buffer(run, i, draw)
            p.grad = p.grad.copy_(grad) if run.zeroes else grad
            if run.special:
                p.grad.view(-1)[:: max(p.numel() // 2, 1)] = float("inf")
                p.grad.view(-1)[1:2] = float("nan")
        optimizer.step(zero_grad=run.zeroes)
    tensors = [
        *params,
        *(p.grad for p in params if run.zeroes),
        *(t for p in params for t in optimizer.state[p].values()),
        *_sums(optimizer),
    ]
    return [_bytes(t.detach()) for t in tensors if torch.is_tensor(t) and t.numel()]


def _sums(optimizer: sf.StackelbergAdamW) -> Iterator[Tensor]:
    """What launches of statistics and joint sets have found: a factor in float32 would hide most of their bits."""
    for unit in optimizer._engine.units:
        for found in unit.table.statistics.values():
            yield from (found.sum_sq, found.norms, found.factors, found.digits)
        if (joint := unit.table.joint_sets) is not None:
            yield from (joint.factors, joint.digits, joint.moved)


def _bytes(tensor: Tensor) -> Tensor:
    """Its bytes, in which every NaN is the same."""
    if tensor.is_floating_point():
        tensor = torch.where(tensor.isnan(), float("nan"), tensor)
    return tensor.contiguous().view(-1).view(torch.uint8)


@cache
def expected(name: str) -> list[Tensor]:
    """The results of `cpu`."""
    return results(name, "cpu")


def unchanged(caught: CaughtLaunch) -> Kernel:
    return kernel_of(caught.ptx, caught.kernel)


class Raced(Exception):
    """A launch had races, and nobody wants the rest of the run."""


@dataclass
class Watch:
    """How a run is executed.

    Attributes:
        change: gives the kernel of a launch.
        schedule: which blocks run together.
        watched: whether races of a launch are looked for.
        observers: makes more observers of watched launches.
        stops_at: a launch that has had such a race is the last one.
    """

    change: Callable[[CaughtLaunch], Kernel] = unchanged
    schedule: Schedule = TOGETHER
    watched: Callable[[CaughtLaunch], bool] = lambda caught: True
    observers: Callable[[CaughtLaunch], Sequence[Observer]] = lambda caught: ()
    stops_at: Callable[[Race], bool] = lambda race: False


@dataclass
class Found:
    """What the checks found in a run.

    Attributes:
        races: of each launch that was watched, by the kernel's name.
        equal: the results are those of `cpu`; not where a race has ended the run.
        instructions: the most of a launch.
    """

    races: list[tuple[str, Counter[Race]]] = field(default_factory=list)
    equal: bool = False
    instructions: int = 0


def check(name: str, compiler: str, watch: Watch | None = None) -> Found:
    """Run what a compiler emitted.

    Raises:
        Fault: a check of an access failed.
    """
    watch = watch or Watch()
    detectors: list[RaceDetector] = []
    found = Found()

    def observers(caught: CaughtLaunch, memory: Memory) -> Sequence[Observer]:
        if not watch.watched(caught):
            return ()
        detectors.append(RaceDetector(caught.grid * caught.threads, caught.threads, memory))
        return [detectors[-1], *watch.observers(caught)]

    executor = Interpreted(watch.schedule, None, observers, watch.change)

    def execute(caught: CaughtLaunch) -> None:
        executor(caught)
        while detectors:
            races = detectors.pop().races()
            found.races.append((caught.kernel, races))
            if any(map(watch.stops_at, races)):
                raise Raced

    wanted = expected(name)
    try:
        results_here = results(name, COMPILERS[compiler](execute))
        found.equal = all(torch.equal(a, b) for a, b in zip(wanted, results_here, strict=True))
    except Raced:
        pass
    found.instructions = max((launch.instructions for launch in executor.launches), default=0)
    return found
