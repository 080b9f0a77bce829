"""Small data sets for a new head on a trained body: classes to pretrain on, others to fine-tune on, and shifted tests.

The body is pretrained on some classes, clean and shifted. The new head learns the other classes from a few clean
examples, and is tested on clean and on shifted ones: what a shift does to features, only the pretraining has seen.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

Shift = Callable[[Tensor, Generator], Tensor]

WINDOW = 40  # characters of a snippet
FIRST, LAST = 32, 126  # printable ASCII
MODULES = (
    "argparse", "ast", "configparser", "dataclasses", "difflib", "doctest", "enum", "imaplib", "inspect", "ipaddress",
    "mailbox", "optparse", "pdb", "pickletools", "shutil", "ssl", "subprocess", "tarfile", "turtle", "typing",
)  # fmt: skip
SNIPPETS = 800  # of each module, at most


@dataclass(frozen=True, eq=False)
class Task:
    """Data, shifts and a body.

    Attributes:
        load: returns inputs and classes of all examples.
        classes: how many there are.
        shifts: by name; each changes inputs at random.
        body: returns a new one, with `FEATURES` features.
        grids: by optimizer, the rates to try, as exponents of half decades.
        seeds: those that are judged.
        train, validation: examples of each new class, at most.
        pretraining, steps: steps of the body's pretraining, and of fine-tuning.
    """

    name: str
    load: Callable[[], tuple[Tensor, Tensor]]
    classes: int
    shifts: dict[str, Shift]
    body: Callable[[], nn.Module]
    grids: dict[str, range]
    seeds: range
    train: int = 50
    validation: int = 100
    pretraining: int = 1500
    steps: int = 300


FEATURES = 64
NEW_CLASSES = 5
BATCH = 32
TEST_SHARE = 0.4  # of the examples of each class: the same ones for all seeds


@dataclass(frozen=True)
class Split:
    """What one seed sees: inputs and classes, which are numbered from 0 on either side.

    Attributes:
        old: the classes to pretrain on, not shifted.
        train, validation, test: the new classes, not shifted.
        shifted: the test by shift.
    """

    old: tuple[Tensor, Tensor]
    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    shifted: dict[str, tuple[Tensor, Tensor]]


def split(task: Task, seed: int) -> Split:
    """Draw the new classes and their examples for training; what is left of them, but for the test, validates."""
    inputs, labels = task.load()
    generator = Generator().manual_seed(seed)
    order = torch.randperm(task.classes, generator=generator)
    number = order.argsort()[labels]  # the new classes first
    is_new, is_test = number < NEW_CLASSES, in_test(labels)
    pool = (is_new & ~is_test).nonzero().flatten()
    pool = pool[torch.randperm(len(pool), generator=generator)]
    of_class = [pool[number[pool] == c] for c in range(NEW_CLASSES)]
    train = torch.cat([rows[: task.train] for rows in of_class])
    validation = torch.cat([rows[task.train :][: task.validation] for rows in of_class])
    test = (is_new & is_test).nonzero().flatten()
    old = (~is_new).nonzero().flatten()
    return Split(
        (inputs[old], number[old] - NEW_CLASSES),
        (inputs[train], number[train]),
        (inputs[validation], number[validation]),
        (inputs[test], number[test]),
        {
            name: (shift(inputs[test], generator), number[test])
            for name, shift in task.shifts.items()
        },
    )


def in_test(labels: Tensor) -> Tensor:
    """Return which examples are the test's: a fixed random share of each class."""
    drawn = torch.rand(len(labels), generator=Generator().manual_seed(0))
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for c in labels.unique():
        rows = (labels == c).nonzero().flatten()
        mask[rows[drawn[rows].argsort()[: int(TEST_SHARE * len(rows))]]] = True
    return mask


@cache
def load_digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 1797 digits, [n, 64] in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def rotate(images: Tensor, generator: Generator) -> Tensor:
    """Rotate images [n, 64] by 20 to 45 degrees to either side."""
    degrees = 20 + 25 * torch.rand(len(images), generator=generator)
    side = torch.randint(2, (len(images),), generator=generator) * 2 - 1
    return rotated(images, degrees * side)


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate images [n, 64] by angles [n]."""
    angle = degrees * (math.pi / 180)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    matrix = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, [len(images), 1, 8, 8], align_corners=False)
    return F.grid_sample(images.view(-1, 1, 8, 8), grid, align_corners=False).view(-1, 64)


def add_noise(images: Tensor, generator: Generator) -> Tensor:
    """Add normal noise of deviation 0.4 to images in [0, 1]."""
    return images + 0.4 * torch.randn(images.shape, generator=generator)


def digits_body() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, FEATURES), nn.ReLU(),
    )  # fmt: skip


@cache
def load_snippets() -> tuple[Tensor, Tensor]:
    """Return snippets of the source of modules, characters [n, WINDOW] from 0, and the number of the module."""
    snippets, labels = [], []
    for number, name in enumerate(MODULES):
        codes = torch.tensor([c for c in map(ord, source_of(name)) if FIRST <= c <= LAST]) - FIRST
        count = len(codes) // WINDOW
        kept = torch.linspace(0, count - 1, min(count, SNIPPETS)).long()
        snippets.append(codes[: count * WINDOW].view(count, WINDOW)[kept])
        labels.append(torch.full((len(kept),), number))
    return torch.cat(snippets), torch.cat(labels)


def source_of(module: str) -> str:
    """Return a module's source, each run of white space as one space; it is not imported."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return " ".join(Path(spec.origin).read_text(encoding="utf-8").split())


def upper_case(snippets: Tensor, generator: Generator) -> Tensor:
    """Write all letters as capitals."""
    is_lower = (snippets >= ord("a") - FIRST) & (snippets <= ord("z") - FIRST)
    return torch.where(is_lower, snippets - (ord("a") - ord("A")), snippets)


def misspell(snippets: Tensor, generator: Generator) -> Tensor:
    """Replace every sixth character or so by any other."""
    hit = torch.rand(snippets.shape, generator=generator) < 1 / 6
    other = torch.randint(LAST - FIRST + 1, snippets.shape, generator=generator)
    return torch.where(hit, other, snippets)


class TextBody(nn.Module):
    """Characters, two convolutions, and the largest response of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LAST - FIRST + 1, 16)
        self.conv1 = nn.Conv1d(16, 48, 5)
        self.conv2 = nn.Conv1d(48, 48, 3)
        self.out = nn.Linear(48, FEATURES)

    def forward(self, snippets: Tensor) -> Tensor:
        """Return features [n, FEATURES] of snippets [n, WINDOW]."""
        hidden = self.conv1(self.embedding(snippets).transpose(1, 2)).relu()
        return self.out(self.conv2(hidden).relu().amax(2)).relu()


def fingerprint(task: Task) -> str:
    """Return the SHA-256 of the data."""
    digest = hashlib.sha256()
    for values in task.load():
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


DIGITS = Task(
    "digits", load_digits, 10, {"rotated": rotate, "noisy": add_noise}, digits_body,
    {"AdamW": range(-7, 2), "SGD": range(-7, 2)}, range(20),
)  # fmt: skip
TEXT = Task(
    "text", load_snippets, len(MODULES), {"capitals": upper_case, "misspelt": misspell}, TextBody,
    {"AdamW": range(-8, -1), "SGD": range(-7, 0)}, range(12),
)  # fmt: skip
TASKS = (DIGITS, TEXT)
