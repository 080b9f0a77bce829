"""A tiny BERT of transformers' that classifies into two, and what it is trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WORDS, LENGTH = 20, 6


class Words(torch.utils.data.Dataset):
    """Sentences, and whether their first word has an odd number."""

    def __init__(self, count: int = 64, first: int = 0) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(self.first + index)
        ids = torch.randint(WORDS, (LENGTH,), generator=random)
        return {"input_ids": ids, "labels": ids[0] % 2}

    def batch(self) -> dict[str, Tensor]:
        """All of them."""
        rows = [self[index] for index in range(self.count)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def small_bert(layers: int = 2) -> Any:
    """The same weights at every call; its head is `classifier`."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config)
