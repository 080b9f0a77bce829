"""The rows of a run: their workloads, and the target of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .low_precision import STATES
from .shapes import Shape, gpt2_small_shapes, resnet50_shapes
from .workloads import TORCH_FUSED, UNSHARDED, Target, TrainingStep, Workload

# parts of rows' names, as they are in committed results
NEW_GRADIENTS = ", new gradients"
TRAINING_STEP = "whole step: "
LOW_PRECISION = " in fewer bits, "
SHARDED = ", sharded over a "
# the training step of a target for the GPU, and the one with every part
CLIPPED, FULL = TrainingStep(), TrainingStep(scaled=True, ema_decay=0.999)
# norms first, then everything else
TWO_LAUNCHES = Target("launches", 2)
ANYWHERE = ("cpu", "cuda")

NamedShapes = list[tuple[str, Shape]]


def _uniform(
    name: str,
    count: int,
    shape: Shape,
    group_of: Callable[[int], int],
    first_head: int,
    **fields: Any,
) -> Workload:
    """Build a workload of `count` parameters of one shape; `group_of` maps an index to its group."""
    groups = tuple(group_of(i) for i in range(count))
    return Workload(name, (shape,) * count, groups, first_head, **fields)


def _model(
    name: str,
    parameters: NamedShapes,
    group_of: Callable[[str, Shape], int],
    first_head: int,
    **fields: Any,
) -> Workload:
    """Build a workload of a model's shapes; `group_of` maps a parameter's name and shape to its group."""
    shapes = tuple(shape for _, shape in parameters)
    groups = tuple(group_of(*parameter) for parameter in parameters)
    return Workload(name, shapes, groups, first_head, **fields)


def _gpt2_head(name: str, _shape: Shape) -> int:
    return int(name == "wte")


def _gpt2_group(name: str, shape: Shape) -> int:
    # 0, 1: body with and without weight decay; 2, 3: tied output layer, final norm
    if name == "wte":
        return 2
    if name.startswith("ln_f"):
        return 3
    return 0 if len(shape) > 1 else 1


def _resnet50_head(name: str, _shape: Shape) -> int:
    return int(name.startswith("fc"))


def workloads() -> list[Workload]:
    """Return all rows of a step: AdamW on the CPU and on one H200."""
    many = ("600x1000 / 2 groups", 600, (1000,), lambda i: int(i >= 598), 1)
    gpt2 = gpt2_small_shapes()
    return [
        *_cpu_rows(many, gpt2),
        *_gpu_rows(gpt2),
        *_training_step_rows(many, gpt2),
        *_low_precision_rows(gpt2),
        *_sharded_rows(),
    ]


def _cpu_rows(many: tuple[Any, ...], gpt2: NamedShapes) -> list[Workload]:
    at_least_8, at_least_15 = (Target(TORCH_FUSED, 8.0),), (Target(TORCH_FUSED, 15.0),)
    singles = ("465 groups x 1000", 465, (1000,), lambda i: i, 464)
    # fits into the cache
    small_shapes = ((140, 1000), (10, 1000))
    return [
        _uniform(*many, targets=at_least_8),
        _uniform(many[0] + NEW_GRADIENTS, *many[1:], targets=at_least_8, new_gradients=True),
        _uniform(*singles, targets=at_least_15),
        _uniform(singles[0] + NEW_GRADIENTS, *singles[1:], targets=at_least_15, new_gradients=True),
        Workload("2 tensors, 150k", small_shapes, (0, 1), 1, targets=(Target(TORCH_FUSED, 1.8),)),
        _model(
            "GPT-2-small shapes (148 tensors, 124M), 2 groups",
            gpt2,
            _gpt2_head,
            1,
            targets=(Target(TORCH_FUSED, 1.0), Target("stream", 0.9)),
        ),
    ]


def _gpu_rows(gpt2: NamedShapes) -> list[Workload]:
    on_gpu: dict[str, Any] = {"devices": ("cuda",)}
    one_launch = Target("launches", 1)
    resnet50 = (
        "ResNet-50 shapes (161 tensors, 25.6M), 2 groups, eager",
        resnet50_shapes(),
        _resnet50_head,
        1,
    )
    twice = Target(TORCH_FUSED, 2.0)
    return [
        _uniform(
            "1G parameters fp32, 2 groups",
            60,
            (4096, 4096),
            lambda i: int(i >= 58),
            1,
            targets=(Target("copy", 0.92), Target(TORCH_FUSED, 1.05), one_launch),
            **on_gpu,
        ),
        _uniform(
            "465 groups, 29M parameters",
            465,
            (250, 250),
            lambda i: i,
            464,
            targets=(Target(TORCH_FUSED, 50.0), one_launch),
            **on_gpu,
        ),
        _model(*resnet50, targets=(twice, one_launch), **on_gpu),
        _model(
            resnet50[0] + NEW_GRADIENTS,
            *resnet50[1:],
            targets=(twice,),
            new_gradients=True,
            **on_gpu,
        ),
        _model(
            "GPT-2-small shapes (148 tensors, 124M), 4 groups, eager",
            gpt2,
            _gpt2_group,
            2,
            targets=(Target(TORCH_FUSED, 1.1), one_launch),
            **on_gpu,
        ),
    ]


def _training_step_rows(many: tuple[Any, ...], gpt2: NamedShapes) -> list[Workload]:
    return [
        _uniform(TRAINING_STEP + many[0], *many[1:], targets=(TWO_LAUNCHES,), training_step=FULL),
        _model(
            "clip per role + step + clear: GPT-2-small shapes, 2 groups",
            gpt2,
            _gpt2_head,
            1,
            devices=("cuda",),
            targets=(Target(TORCH_FUSED, 1.5), TWO_LAUNCHES),
            training_step=CLIPPED,
        ),
        _model(
            TRAINING_STEP + "GPT-2-small shapes, 2 groups",
            gpt2,
            _gpt2_head,
            1,
            devices=ANYWHERE,
            targets=(TWO_LAUNCHES,),
            training_step=FULL,
        ),
    ]


def _low_precision_rows(gpt2: NamedShapes) -> list[Workload]:
    # weights that are right on average, and weights in 24 bits
    average, exact = "ours bf16 stochastic", "ours bf16 split8"
    targets = {
        "8bit": (
            Target(TORCH_FUSED, 1.5, average, "cpu"),
            Target(TORCH_FUSED, 1.5, exact, "cpu"),
            Target("stored", 4.1, average),
            Target("stored", 5.1, exact),
        )
    }
    return [
        _model(
            f"GPT-2-small shapes{LOW_PRECISION}{description}",
            gpt2,
            _gpt2_head,
            1,
            devices=ANYWHERE,
            targets=targets.get(states, ()),
            states=states,
        )
        for states, description in STATES.items()
    ]


def _sharded_rows() -> list[Workload]:
    counts = {(1,): (148, 600), (1, 1): (600,)}
    targets = {600: (Target(TORCH_FUSED, 12.0), Target(UNSHARDED, 1.5))}
    return [
        _uniform(
            f"{count}x1000 / 2 groups{SHARDED}{len(mesh)}-D mesh{NEW_GRADIENTS}",
            count,
            (10, 100),
            lambda i, last=count - 2: int(i >= last),
            1,
            targets=targets.get(count, ()),
            new_gradients=True,
            mesh=mesh,
        )
        for mesh, of_mesh in counts.items()
        for count in of_mesh
    ]


def quick_workloads() -> list[Workload]:
    """Return small rows that only show whether everything works; their times say nothing."""
    few = ("20x1000 / 2 groups", 20, (1000,), lambda i: int(i >= 18), 1)
    target = Target(TORCH_FUSED, 1.0)
    return [
        _uniform(*few, devices=ANYWHERE, targets=(target,)),
        _uniform(few[0] + NEW_GRADIENTS, *few[1:], devices=ANYWHERE, new_gradients=True),
        _uniform(
            TRAINING_STEP + few[0],
            *few[1:],
            devices=ANYWHERE,
            targets=(target, TWO_LAUNCHES),
            training_step=FULL,
        ),
        Workload(
            f"3 tensors{LOW_PRECISION}{STATES['8bit']}",
            ((128, 512), (128, 512), (512,)),
            (0, 1, 1),
            1,
            devices=ANYWHERE,
            targets=(Target("stored", 5.1, "ours bf16 split8"),),
            states="8bit",
        ),
    ]
