"""The data of the finetune experiment: shifts, and what each seed may see."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

pytest.importorskip("sklearn")

from stackelberg_fused.benchmarks.experiments.finetune_data import (
    FIRST,
    MODULES,
    NEW_CLASSES,
    SNIPPETS,
    TASKS,
    TEST_SHARE,
    WINDOW,
    Task,
    add_noise,
    in_test,
    load_snippets,
    misspell,
    rotate,
    rotated,
    source_of,
    split,
    upper_case,
)

pytestmark = pytest.mark.slow  # each part of it is a run


def rows(inputs: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in inputs}


def as_text(snippet: Tensor) -> str:
    return "".join(chr(FIRST + int(c)) for c in snippet)


def test_a_quarter_turn_moves_pixels_to_their_places() -> None:
    images = torch.rand(3, 64)
    turned = rotated(images, torch.tensor([90.0, 180.0, -90.0])).view(3, 8, 8)
    for image, result, quarters in zip(images.view(3, 8, 8), turned, (1, 2, -1), strict=True):
        torch.testing.assert_close(result, torch.rot90(image, quarters), atol=1e-4, rtol=0.0)


def test_digits_turn_to_both_sides_and_never_a_little() -> None:
    """A bar on the middle line moves by the sine of the angle."""
    bar = torch.zeros(400, 8, 8)
    bar[:, 3:5, 7] = 1.0  # at the right edge, 3.5 pixels from the centre
    turned = rotate(bar.view(-1, 64), Generator().manual_seed(0)).view(-1, 8, 8)
    heights = torch.arange(8.0) - 3.5
    height = (turned.sum(2) * heights).sum(1) / turned.sum((1, 2))
    assert height.abs().min() > 0.7
    assert 0.4 < float((height > 0).float().mean()) < 0.6


def test_noise_is_normal() -> None:
    noise = add_noise(torch.zeros(500, 64), Generator().manual_seed(0))
    assert abs(float(noise.mean())) < 0.01
    assert float(noise.std()) == pytest.approx(0.4, abs=0.01)


def test_letters_become_capitals() -> None:
    snippets = load_snippets()[0][::50]
    for before, after in zip(snippets, upper_case(snippets, Generator()), strict=True):
        assert as_text(after) == as_text(before).upper()


def test_every_sixth_character_is_another() -> None:
    snippets = load_snippets()[0][::5]
    changed = (misspell(snippets, Generator().manual_seed(0)) != snippets).float().mean()
    assert float(changed) == pytest.approx(1 / 6, abs=0.01)


def test_snippets_are_pieces_of_the_source_of_their_module() -> None:
    snippets, labels = load_snippets()
    assert snippets.shape == (len(MODULES) * SNIPPETS, WINDOW)
    ascii_only = {name: "".join(filter(str.isprintable, source_of(name))) for name in MODULES}
    for snippet, label in zip(snippets[::97], labels[::97], strict=True):
        source = ascii_only[MODULES[label]]
        assert as_text(snippet) in "".join(c for c in source if ord(c) < 127)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_what_is_tested_is_seen_nowhere_else(task: Task) -> None:
    tests: set[bytes] = set()
    others: set[bytes] = set()
    for seed in (0, 1, 1000, 1003):
        data = split(task, seed)
        parts = [rows(part[0]) for part in (data.old, data.train, data.validation, data.test)]
        twins = sum(map(len, parts)) - len(set().union(*parts))
        assert twins <= 3  # a few digits and snippets occur twice in their source
        assert sorted(data.train[1].unique().tolist()) == list(range(NEW_CLASSES))
        assert data.train[1].bincount().tolist() == [task.train] * NEW_CLASSES
        assert data.old[1].max() == task.classes - NEW_CLASSES - 1
        tests |= parts[3]
        others |= parts[1] | parts[2]
    assert len(tests & others) <= 3  # also not with another seed


def test_the_test_is_the_same_share_of_every_class() -> None:
    for task in TASKS:
        labels = task.load()[1]
        counts, of_test = labels.bincount(), labels[in_test(labels)].bincount()
        assert of_test.tolist() == [int(TEST_SHARE * count) for count in counts.tolist()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_shift_changes_inputs_and_nothing_else(task: Task) -> None:
    data = split(task, 4)
    for inputs, labels in data.shifted.values():
        assert torch.equal(labels, data.test[1])
        assert inputs.shape == data.test[0].shape
        assert not torch.equal(inputs, data.test[0])
    again = split(task, 4)
    assert all(torch.equal(again.shifted[name][0], data.shifted[name][0]) for name in task.shifts)
