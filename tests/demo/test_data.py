"""The data of the demo: nothing that is validated on was trained on."""

from __future__ import annotations

import pytest
import torch

from stackelberg_fused.demo import data

pytest.importorskip("sklearn")


def test_text_split_shares_nothing():
    split = data.split_text()
    (train_bytes,), (held_out,) = split.train, split.validation
    text, other = (bytes(part.tolist()).decode() for part in (train_bytes, held_out))
    assert len(train_bytes) > 400_000
    assert len(held_out) > 30_000
    paragraphs = {p.strip() for p in text.split("\n\n")} & {p.strip() for p in other.split("\n\n")}
    assert not paragraphs
    # Of stretches of 80 bytes, longer than any context, hardly one is known word for word.
    stretches = [other[i : i + 80] for i in range(0, len(other) - 80, 40)]
    assert sum(stretch in text for stretch in stretches) <= 0.01 * len(stretches)
    assert split.sha256() == data.split_text().sha256()


def test_digits_split_shares_nothing():
    split = data.split_digits()
    images, labels = split.train
    others, other_labels = split.validation
    assert (len(images), len(others)) == (len(labels), len(other_labels)) == (1438, 359)
    assert not {tuple(row) for row in images.tolist()} & {tuple(row) for row in others.tolist()}
    assert split.sha256() == data.split_digits().sha256()


def test_text_batches_predict_the_next_byte():
    text = torch.arange(100, dtype=torch.uint8)
    for inputs, targets in (
        data.text_batch(text, 50, 8, torch.Generator().manual_seed(0)),
        data.text_windows(text, 5, 8),
    ):
        assert torch.equal(inputs + 1, targets)
    starts = data.text_windows(text, 1000, 8)[0][:, 0]
    assert (starts.diff() >= 8).all()
