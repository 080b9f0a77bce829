"""Small models as their authors name their parts: a GPT with tied weights, a ViT, a BERT."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, BLOCKS = 8, 3


class Block(nn.Module):
    """A block of a transformer, but for attention."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class GPT(nn.Module):
    """As nanoGPT: the last layer's matrix is the embedding's where weights are tied."""

    def __init__(self, tied: bool = True, blocks: int = BLOCKS, width: int = WIDTH) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(11, width),
                "wpe": nn.Embedding(5, width),
                "h": nn.ModuleList(Block(width) for _ in range(blocks)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, 11, bias=False)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"].weight[: ids.shape[-1]]
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


class ViT(nn.Module):
    """As timm's: tokens and positions are parameters of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, WIDTH))
        self.patch_embed = nn.Conv2d(3, WIDTH, 4)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_embed"}


class Bert(nn.Module):
    """As in transformers: an encoder within the model, a table that is made after the blocks, a norm of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = nn.Module()
        self.bert.embeddings = nn.ModuleDict(
            {"words": nn.Embedding(11, WIDTH), "LayerNorm": nn.LayerNorm(WIDTH)}
        )
        self.bert.encoder = nn.Module()
        self.bert.encoder.final_layer_norm = nn.LayerNorm(WIDTH)  # made before, applied after
        self.bert.encoder.layer = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.bert.encoder.relative = nn.Embedding(4, WIDTH)
        self.bert.pooler = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, 2)
