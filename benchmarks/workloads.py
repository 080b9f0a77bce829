"""What is timed: parameter shapes, their groups, and the target each row is held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Shape = tuple[int, ...]
HYPERPARAMETERS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.01,
}
HEAD_LR_RATIO = 10.0
TORCH_FUSED = "torch fused"
# the least an Adam step in float32 can move: p, g, m, v read; p, m, v written
ADAM_BYTES = 28
NEW = ", new gradients"


@dataclass(frozen=True)
class Target:
    """`quantity` of our default backend must reach `bound`.

    `quantity` is "torch fused" (times faster, the faster of torch's two figures counts), "copy" or
    "stream" (share of the measured bandwidth at 28 B/parameter), or "launches" (kernel launches per
    step, at most).
    """

    quantity: str
    bound: float

    def met_by(self, value: float) -> bool:
        return value <= self.bound if self.quantity == "launches" else value >= self.bound


@dataclass(frozen=True)
class Workload:
    """Shapes of the parameters and the group of each; groups from `heads_from` on are heads."""

    name: str
    shapes: tuple[Shape, ...]
    group_of: tuple[int, ...]
    heads_from: int
    devices: tuple[str, ...] = ("cpu",)
    targets: tuple[Target, ...] = ()
    new_gradients: bool = False
    about: str = ""

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def groups(self) -> int:
        return max(self.group_of) + 1

    def tensors(self, device: str, seed: int, scale: float) -> list[torch.Tensor]:
        """One normal tensor per parameter, the same values for the same seed and device type."""
        generator = torch.Generator(device).manual_seed(seed)
        return [
            torch.randn(shape, generator=generator, device=device).mul_(scale)
            for shape in self.shapes
        ]

    def param_groups(self, params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        """Group dicts, each with a rate of its own; a head's is ``HEAD_LR_RATIO`` times a body's."""
        groups: list[dict[str, Any]] = []
        for index in range(self.groups):
            head = index >= self.heads_from
            # a spread of two per cent over the groups, so that none of them could be merged
            rate = HYPERPARAMETERS["lr"] * (1 + 0.02 * index / self.groups)
            groups.append(
                {
                    "params": [
                        p for p, owner in zip(params, self.group_of, strict=True) if owner == index
                    ],
                    "lr": rate * (HEAD_LR_RATIO if head else 1.0),
                    "weight_decay": HYPERPARAMETERS["weight_decay"],
                    "role": "head" if head else "body",
                }
            )
        return groups


def gpt2_small_shapes() -> list[tuple[str, Shape]]:
    """GPT-2 small with tied embeddings: 148 tensors, 124 439 808 elements."""
    width, layers = 768, 12
    shapes: list[tuple[str, Shape]] = [("wte", (50257, width)), ("wpe", (1024, width))]
    for i in range(layers):
        shapes += [
            (f"h.{i}.ln_1.weight", (width,)),
            (f"h.{i}.ln_1.bias", (width,)),
            (f"h.{i}.attn.c_attn.weight", (width, 3 * width)),
            (f"h.{i}.attn.c_attn.bias", (3 * width,)),
            (f"h.{i}.attn.c_proj.weight", (width, width)),
            (f"h.{i}.attn.c_proj.bias", (width,)),
            (f"h.{i}.ln_2.weight", (width,)),
            (f"h.{i}.ln_2.bias", (width,)),
            (f"h.{i}.mlp.c_fc.weight", (width, 4 * width)),
            (f"h.{i}.mlp.c_fc.bias", (4 * width,)),
            (f"h.{i}.mlp.c_proj.weight", (4 * width, width)),
            (f"h.{i}.mlp.c_proj.bias", (width,)),
        ]
    return [*shapes, ("ln_f.weight", (width,)), ("ln_f.bias", (width,))]


def resnet50_shapes() -> list[tuple[str, Shape]]:
    """ResNet-50 for 1000 classes: 161 tensors, 25 557 032 elements."""
    shapes: list[tuple[str, Shape]] = []

    def convolution(name: str, out_channels: int, in_channels: int, kernel: int) -> None:
        shapes.append((f"{name}.weight", (out_channels, in_channels, kernel, kernel)))
        shapes.append((f"{name}.bn.weight", (out_channels,)))
        shapes.append((f"{name}.bn.bias", (out_channels,)))

    convolution("conv1", 64, 3, 7)
    channels = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            convolution(f"{name}.conv1", width, channels, 1)
            convolution(f"{name}.conv2", width, width, 3)
            convolution(f"{name}.conv3", 4 * width, width, 1)
            if block == 0:
                convolution(f"{name}.downsample", 4 * width, channels, 1)
            channels = 4 * width
    return [*shapes, ("fc.weight", (1000, channels)), ("fc.bias", (1000,))]


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
            lambda name, _: int(name == "wte"),
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
    ]


def quick_workloads() -> list[Workload]:
    """Small rows that show whether everything works; nothing is to be concluded from their times."""
    few = ("20x1000 / 2 groups", 20, (1000,), lambda i: int(i >= 18), 1)
    anywhere = ("cpu", "cuda")
    target = (Target(TORCH_FUSED, 1.0),)
    return [
        _uniform(*few, devices=anywhere, targets=target),
        _uniform(few[0] + NEW, *few[1:], devices=anywhere, new_gradients=True),
    ]
