"""Workloads of the rows that measure backward pass and step together: models, batches and groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .workloads import TORCH_FUSED, Target, param_group

Batch = tuple[torch.Tensor, torch.Tensor]
# so low that a long run does not learn its batches, and gradients keep their size
RATE = 1e-5
BATCHES = 64


class ManyLayers(nn.Module):
    """A residual MLP of many small layers: it has many parameters and little arithmetic."""

    def __init__(self, layers: int, width: int, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [batch, width] to logits [batch, classes]."""
        for layer in self.layers:
            # the division keeps the size of activations, however many layers there are
            x = x + torch.tanh(layer(x)) / len(self.layers)
        return self.head(x)


@dataclass(frozen=True)
class TrainingWorkload:
    """A model and the random batches that it is trained on.

    Attributes:
        name: the row's name.
        model: builds the model.
        example: draws inputs and classes of one batch on the CPU.
        head: prefix of the names of the head's parameters.
        devices: where the row is measured.
        targets: bounds for our contestants.
        bf16: the forward pass runs under autocast to bfloat16.
    """

    name: str
    model: Callable[[], nn.Module]
    example: Callable[[torch.Generator], Batch]
    head: str
    devices: tuple[str, ...] = ("cpu",)
    targets: tuple[Target, ...] = ()
    bf16: bool = False
    # the reference of the parity check makes an update alone
    training_step: None = None

    def batches(self, device: str, seed: int) -> list[Batch]:
        """Draw the batches; the same seed gives the same ones."""
        generator = torch.Generator().manual_seed(seed)
        drawn = [self.example(generator) for _ in range(BATCHES)]
        return [(x.to(device), y.to(device)) for x, y in drawn]

    def in_head(self) -> list[bool]:
        """Tell of each parameter whether it belongs to the head."""
        with torch.device("meta"):
            names = [name for name, _ in self.model().named_parameters()]
        return [name.startswith(self.head) for name in names]

    def param_groups(self, params: list[nn.Parameter]) -> list[dict[str, Any]]:
        """Sort the model's parameters into a body group and a head group."""
        in_head = self.in_head()
        return [
            param_group(
                [p for p, of_head in zip(params, in_head, strict=True) if of_head == is_head],
                RATE,
                is_head,
            )
            for is_head in (False, True)
        ]


def _gpt(batch: int, **sizes: int) -> dict[str, Any]:
    def model() -> nn.Module:
        from stackelberg_fused.demo.gpt import GPT, GPTConfig

        return GPT(GPTConfig(**sizes))

    def example(generator: torch.Generator) -> Batch:
        shape = (batch, sizes["context"] + 1)
        tokens = torch.randint(sizes["vocabulary"], shape, generator=generator)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return {"model": model, "example": example, "head": "lm_head"}


def _mlp(batch: int, layers: int, width: int) -> dict[str, Any]:
    def example(generator: torch.Generator) -> Batch:
        x = torch.randn(batch, width, generator=generator)
        return x, torch.randint(10, (batch,), generator=generator)

    return {"model": lambda: ManyLayers(layers, width), "example": example, "head": "head"}


def training_workloads() -> list[TrainingWorkload]:
    """Return the workloads of `--with-backward`, for the CPU and for one H200."""
    small = {"vocabulary": 256, "context": 64, "layers": 4, "heads": 4, "width": 256}
    gpt2 = {"vocabulary": 50257, "context": 1024, "layers": 12, "heads": 12, "width": 768}
    one_launch = Target("launches", 1)
    return [
        TrainingWorkload("backward + step: GPT, 3.3M parameters", **_gpt(4, **small)),
        TrainingWorkload(
            "backward + step: MLP of 200 small layers",
            **_mlp(16, 200, 32),
            devices=("cpu", "cuda"),
            targets=(one_launch,),
        ),
        TrainingWorkload(
            "backward + step: MLP of 299 small layers, 600 tensors",
            **_mlp(16, 299, 32),
            devices=("cpu", "cuda"),
        ),
        TrainingWorkload(
            "backward + step: GPT-2 small, untied (163M), bf16 autocast",
            **_gpt(4, **gpt2),
            devices=("cuda",),
            targets=(Target(TORCH_FUSED, 1.0), one_launch),
            bf16=True,
        ),
    ]


def quick_training_workloads() -> list[TrainingWorkload]:
    """Return small workloads that only show whether everything works."""
    tiny = {"vocabulary": 64, "context": 16, "layers": 1, "heads": 2, "width": 32}
    anywhere = ("cpu", "cuda")
    targets = (Target(TORCH_FUSED, 1.0), Target("launches", 1))
    return [
        TrainingWorkload(
            "backward + step: tiny GPT", **_gpt(2, **tiny), devices=anywhere, targets=targets
        ),
        TrainingWorkload(
            "backward + step: MLP of 20 small layers", **_mlp(4, 20, 16), devices=anywhere
        ),
    ]
