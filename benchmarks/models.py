"""What is trained where backward pass and step are measured together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .workloads import (
    HEAD_LR_RATIO,
    HYPERPARAMETERS,
    TORCH_FUSED,
    Target,
)

Batch = tuple[torch.Tensor, torch.Tensor]
# low enough that a long run does not learn its batches: gradients stay as large as they were
RATE = 1e-5
BATCHES = 64


class ManyLayers(nn.Module):
    """A residual MLP of many small layers: the parameters are numerous, the arithmetic is not."""

    def __init__(self, layers: int, width: int, classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [batch, width] -> logits [batch, classes]."""
        for layer in self.layers:
            # so that activations neither vanish nor grow, however many layers there are
            x = x + torch.tanh(layer(x)) / len(self.layers)
        return self.head(x)


@dataclass(frozen=True)
class Training:
    """A model and what it is trained on, in random batches; `head` begins the names of the head.

    `example(generator)` draws inputs and classes on the CPU; `bf16`: the forward pass is under
    autocast to bfloat16. The rest is as in `workloads.Workload`.
    """

    name: str
    model: Callable[[], nn.Module]
    example: Callable[[torch.Generator], Batch]
    head: str
    devices: tuple[str, ...] = ("cpu",)
    targets: tuple[Target, ...] = ()
    bf16: bool = False
    # parity's reference makes a plain step
    around: None = None

    def batches(self, device: str, seed: int) -> list[Batch]:
        """The same for the same seed."""
        generator = torch.Generator().manual_seed(seed)
        drawn = [self.example(generator) for _ in range(BATCHES)]
        return [(x.to(device), y.to(device)) for x, y in drawn]

    def heads(self) -> list[bool]:
        """Of each parameter whether it belongs to the head."""
        with torch.device("meta"):
            names = [name for name, _ in self.model().named_parameters()]
        return [name.startswith(self.head) for name in names]

    def param_groups(self, params: list[nn.Parameter]) -> list[dict[str, Any]]:
        """The model's parameters, in its order, as two groups."""
        roles = self.heads()
        return [
            {
                "params": [p for p, is_head in zip(params, roles, strict=True) if is_head == head],
                "lr": RATE * (HEAD_LR_RATIO if head else 1.0),
                "weight_decay": HYPERPARAMETERS["weight_decay"],
                "role": "head" if head else "body",
            }
            for head in (False, True)
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


def trainings() -> list[Training]:
    """The rows: a model per shape of the work, on the CPU and on one H200."""
    small = {"vocabulary": 256, "context": 64, "layers": 4, "heads": 4, "width": 256}
    gpt2 = {"vocabulary": 50257, "context": 1024, "layers": 12, "heads": 12, "width": 768}
    never_slower = (Target(TORCH_FUSED, 1.0), Target("launches", 1))
    many = {"devices": ("cpu", "cuda"), "targets": (Target("launches", 1),)}
    return [
        Training("backward + step: GPT, 3.3M parameters", **_gpt(4, **small)),
        Training("backward + step: MLP of 200 small layers", **_mlp(16, 200, 32), **many),
        Training(
            "backward + step: GPT-2 small, untied (163M), bf16 autocast",
            **_gpt(4, **gpt2),
            devices=("cuda",),
            targets=never_slower,
            bf16=True,
        ),
    ]


def quick_trainings() -> list[Training]:
    """Small models that show whether everything works."""
    tiny = {"vocabulary": 64, "context": 16, "layers": 1, "heads": 2, "width": 32}
    anywhere = ("cpu", "cuda")
    target = (Target(TORCH_FUSED, 1.0), Target("launches", 1))
    return [
        Training("backward + step: tiny GPT", **_gpt(2, **tiny), devices=anywhere, targets=target),
        Training("backward + step: MLP of 20 small layers", **_mlp(4, 20, 16), devices=anywhere),
    ]
