"""Real data that is already on the disk: Python's help text and scikit-learn's digits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Training and validation tensors that share nothing, and a hash of both."""

    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for tensor in (*self.train, *self.validation):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def split_text(validation_share: float = 0.1) -> Split:
    """Python's help topics as bytes: one uint8 tensor [length] a side.

    The topics stand in the order of their names and the split is by position: the last tenth
    validates. The help repeats itself (`help("while")` is also a part of `help("compound")`), so
    paragraphs of the last tenth that also stand in the training text are left out: they would
    measure memory. The text differs a little between Python versions.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    cut = round(len(text) * (1 - validation_share))
    train = text[:cut]
    seen = {paragraph.strip() for paragraph in train.split("\n\n")}
    fresh = [part for part in text[cut:].split("\n\n") if part.strip() not in seen]
    return Split((_bytes(train),), (_bytes("\n\n".join(fresh)),))


def split_digits(validation_share: float = 0.2) -> Split:
    """1797 images of 8 x 8 pixels in [0, 1]: (float32 [n, 64], int64 [n]) a side.

    Neighbours in the file come from one writer, so the split is by a fixed shuffle, the same for
    every seed of the training.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise RuntimeError("--task digits needs scikit-learn: pip install scikit-learn") from error

    digits = load_digits()
    images = torch.from_numpy(digits.data).float() / 16
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    cut = round(len(labels) * (1 - validation_share))
    train, validation = order[:cut], order[cut:]
    return Split((images[train], labels[train]), (images[validation], labels[validation]))


def text_batch(
    text: Tensor, size: int, context: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random windows of the text: inputs and the bytes that follow them, int64 [size, context]."""
    starts = torch.randint(len(text) - context, (size,), generator=generator)
    windows = text[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def text_windows(text: Tensor, count: int, context: int) -> tuple[Tensor, Tensor]:
    """`count` windows spread evenly over the text, without overlap: the same at every call."""
    count = min(count, (len(text) - 1) // context)
    starts = torch.arange(count) * ((len(text) - 1) // count)
    windows = text[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
