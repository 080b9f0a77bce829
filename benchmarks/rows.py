"""The rows: what is timed, and the target each is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .low_precision import STATES
from .shapes import Shape, gpt2_small_shapes, resnet50_shapes
from .workloads import (
    TORCH_FUSED,
    Around,
    Target,
    Workload,
)

NEW = ", new gradients"
WHOLE = "whole step: "
FEWER = " in fewer bits, "
# what a whole step has to do: on the GPU the target's, everywhere all there is
CLIPPED, ALL = Around(), Around(scaled=True, ema_decay=0.999)


def _uniform(
    name: str, count: int, shape: Shape, group: Callable[[int], int], heads_from: int, **kw: Any
) -> Workload:
    return Workload(name, (shape,) * count, tuple(group(i) for i in range(count)), heads_from, **kw)


def _named(
    name: str,
    named: list[tuple[str, Shape]],
    group: Callable[[str, Shape], int],
    heads_from: int,
    **kw: Any,
) -> Workload:
    shapes = tuple(shape for _, shape in named)
    return Workload(name, shapes, tuple(group(n, s) for n, s in named), heads_from, **kw)


def _gpt2_head(name: str, _shape: Shape) -> int:
    return int(name == "wte")


def _gpt2_group(name: str, shape: Shape) -> int:
    # 0, 1: body with and without weight decay; 2, 3: tied output layer, final norm
    if name == "wte":
        return 2
    if name.startswith("ln_f"):
        return 3
    return 0 if len(shape) > 1 else 1


def workloads() -> list[Workload]:
    """The rows: what one step of AdamW in float32 has to reach, on the CPU and on one H200."""
    at_least_8, at_least_15 = (Target(TORCH_FUSED, 8.0),), (Target(TORCH_FUSED, 15.0),)
    many = ("600x1000 / 2 groups", 600, (1000,), lambda i: int(i >= 598), 1)
    singles = ("465 groups x 1000", 465, (1000,), lambda i: i, 464)
    gpt2, resnet50 = gpt2_small_shapes(), resnet50_shapes()
    return [
        _uniform(*many, targets=at_least_8),
        _uniform(many[0] + NEW, *many[1:], targets=at_least_8, new_gradients=True),
        _uniform(*singles, targets=at_least_15),
        _uniform(singles[0] + NEW, *singles[1:], targets=at_least_15, new_gradients=True),
        Workload(
            "2 tensors, 150k",
            ((140, 1000), (10, 1000)),
            (0, 1),
            1,
            targets=(Target(TORCH_FUSED, 1.8),),
            about="in cache",
        ),
        _named(
            "GPT-2-small shapes (148 tensors, 124M), 2 groups",
            gpt2,
            _gpt2_head,
            1,
            targets=(Target(TORCH_FUSED, 1.0), Target("stream", 0.9)),
        ),
        _uniform(
            "1G parameters fp32, 2 groups",
            60,
            (4096, 4096),
            lambda i: int(i >= 58),
            1,
            devices=("cuda",),
            targets=(Target("copy", 0.92), Target(TORCH_FUSED, 1.05), Target("launches", 1)),
        ),
        _uniform(
            "465 groups, 29M parameters",
            465,
            (250, 250),
            lambda i: i,
            464,
            devices=("cuda",),
            targets=(Target(TORCH_FUSED, 50.0), Target("launches", 1)),
        ),
        _named(
            "ResNet-50 shapes (161 tensors, 25.6M), 2 groups, eager",
            resnet50,
            lambda name, _: int(name.startswith("fc")),
            1,
            devices=("cuda",),
            targets=(Target(TORCH_FUSED, 2.0), Target("launches", 1)),
        ),
        _named(
            "ResNet-50 shapes (161 tensors, 25.6M), 2 groups, eager" + NEW,
            resnet50,
            lambda name, _: int(name.startswith("fc")),
            1,
            devices=("cuda",),
            targets=(Target(TORCH_FUSED, 2.0),),
            new_gradients=True,
        ),
        _named(
            "GPT-2-small shapes (148 tensors, 124M), 4 groups, eager",
            gpt2,
            _gpt2_group,
            2,
            devices=("cuda",),
            targets=(Target(TORCH_FUSED, 1.1), Target("launches", 1)),
        ),
        *_whole(many, gpt2),
        *_fewer_bits(gpt2),
    ]


def _whole(many: tuple[Any, ...], gpt2: list[tuple[str, Shape]]) -> list[Workload]:
    # norms first, then everything else
    two = Target("launches", 2)
    return [
        _uniform(WHOLE + many[0], *many[1:], targets=(two,), around=ALL),
        _named(
            "clip per role + step + clear: GPT-2-small shapes, 2 groups",
            gpt2,
            _gpt2_head,
            1,
            devices=("cuda",),
            targets=(Target(TORCH_FUSED, 1.5), two),
            around=CLIPPED,
        ),
        _named(
            WHOLE + "GPT-2-small shapes, 2 groups",
            gpt2,
            _gpt2_head,
            1,
            devices=("cpu", "cuda"),
            targets=(two,),
            around=ALL,
        ),
    ]


def _fewer_bits(gpt2: list[tuple[str, Shape]]) -> list[Workload]:
    # weights that are right on the average, and in 24 bits
    least, safe = "ours bf16 stochastic", "ours bf16 split8"
    targets = {
        "8bit": (
            Target(TORCH_FUSED, 1.5, least, "cpu"),
            Target(TORCH_FUSED, 1.5, safe, "cpu"),
            Target("stored", 4.1, least),
            Target("stored", 5.1, safe),
        )
    }
    return [
        _named(
            f"GPT-2-small shapes{FEWER}{words}",
            gpt2,
            _gpt2_head,
            1,
            devices=("cpu", "cuda"),
            targets=targets.get(states, ()),
            states=states,
        )
        for states, words in STATES.items()
    ]


def quick_workloads() -> list[Workload]:
    """Small rows that show whether everything works; nothing is to be concluded from their times."""
    few = ("20x1000 / 2 groups", 20, (1000,), lambda i: int(i >= 18), 1)
    anywhere = ("cpu", "cuda")
    target = (Target(TORCH_FUSED, 1.0),)
    return [
        _uniform(*few, devices=anywhere, targets=target),
        _uniform(few[0] + NEW, *few[1:], devices=anywhere, new_gradients=True),
        _uniform(
            WHOLE + few[0],
            *few[1:],
            devices=anywhere,
            targets=(*target, Target("launches", 2)),
            around=ALL,
        ),
        Workload(
            f"3 tensors{FEWER}{STATES['8bit']}",
            ((128, 512), (128, 512), (512,)),
            (0, 1, 1),
            1,
            devices=anywhere,
            targets=(Target("stored", 5.1, "ours bf16 split8"),),
            states="8bit",
        ),
    ]
