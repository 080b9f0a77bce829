"""Parameters that share memory are found, by pairs where they are few and by their elements where they are many."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from stackelberg_fused.memory.overlap import FEW, check_overlap

NUMEL = 240  # of the storage, of float32

# offset, rows, elements of a row, stride of rows, stride of elements
VIEWS = st.tuples(
    st.integers(0, 60), st.integers(1, 3), st.integers(1, 4), st.integers(0, 40), st.integers(0, 12)
)


def _places(view: Tensor) -> list[int]:
    """The addresses of the 2-byte parts of each element."""
    size = view.element_size()
    offsets = torch.arange(NUMEL * 2).as_strided(view.shape, view.stride(), 0).flatten() * size
    return [view.data_ptr() + int(o) + part for o in offsets for part in range(0, size, 2)]


def _overlap(views: list[Tensor]) -> bool:
    places = [place for view in views for place in _places(view)]
    return len(places) != len(set(places))


@pytest.mark.parametrize("least", [1, FEW + 1])
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=150)
def test_what_shares_memory_is_found(least: int, data: st.DataObject) -> None:
    storage = torch.zeros(NUMEL)
    chosen: list[Tensor] = []
    for _ in range(3 * least):
        offset, rows, columns, *strides = data.draw(VIEWS)
        half = data.draw(st.booleans())
        base = storage.view(torch.bfloat16) if half else storage
        view = base.as_strided((rows, columns), strides, offset)
        # mostly disjoint ones: whatever is drawn would nearly always overlap
        if not _overlap([*chosen, view]) or data.draw(st.integers(0, 20)) == 20:
            chosen.append(view)
    named = [(f"number {i}", view) for i, view in enumerate(chosen)]
    if _overlap(chosen):
        with pytest.raises(ValueError, match=r"overlap in memory|share one memory location"):
            check_overlap(named)
    else:
        check_overlap(named)


@pytest.mark.parametrize("count", [FEW, FEW + 1, 40])
def test_both_are_named_of_columns_that_overlap(count: int) -> None:
    base = torch.zeros(7, count)
    named = [(f"column {i}", base[:, i]) for i in range(count)]
    check_overlap(named)
    named.append(("a row", base[3, count - 2 :]))
    with pytest.raises(ValueError, match=r"a row and column \d+ overlap"):
        check_overlap(named)
