"""Real data sets that need no download: Python's help text and scikit-learn's digits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Training and validation tensors without common samples; `sha256` is a hash of both."""

    train: tuple[Tensor, ...]
    validation: tuple[Tensor, ...]

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for tensor in (*self.train, *self.validation):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def split_text(validation_share: float = 0.1) -> Split:
    """Split Python's help topics into training and validation text: one uint8 tensor [bytes] each.

    The topics are sorted by name and split by position: the last tenth is for validation. The help
    repeats itself (`help("while")` is also a part of `help("compound")`), so validation paragraphs
    that occur in the training text are removed: they would measure memorisation. The text differs a
    little between Python versions.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    cut = round(len(text) * (1 - validation_share))
    train = text[:cut]
    seen = {paragraph.strip() for paragraph in train.split("\n\n")}
    fresh = [part for part in text[cut:].split("\n\n") if part.strip() not in seen]
    return Split((_bytes(train),), (_bytes("\n\n".join(fresh)),))


def split_digits(validation_share: float = 0.2) -> Split:
    """Split 1797 images of 8 x 8 pixels in [0, 1] and their labels: (float32 [n, 64], int64 [n]) each.

    Neighbours in the file come from the same writer, so the images are shuffled before the split, in
    one order for all training seeds.

    Raises:
        RuntimeError: scikit-learn is not installed.
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
    """Draw random windows of the text: inputs, and targets one byte later, int64 [size, context] each."""
    starts = torch.randint(len(text) - context, (size,), generator=generator)
    windows = text[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def text_windows(text: Tensor, count: int, context: int) -> tuple[Tensor, Tensor]:
    """Cut `count` windows from the text, evenly spaced and without overlap, the same ones in each call.

    Returns inputs, and targets one byte later, int64 [count, context] each. A short text has fewer windows.
    """
    count = min(count, (len(text) - 1) // context)
    starts = torch.arange(count) * ((len(text) - 1) // count)
    windows = text[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
