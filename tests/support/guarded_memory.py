"""Memory with guards: whatever lies around an element, or between elements, is a pattern that no launch may change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from stackelberg_fused.memory import arena

PATTERN = 0xA5
GUARD = 64  # elements before the first and after the last


@dataclass
class GuardedMemory:
    """Remembers every guarded allocation and tells which of them were written to outside of their elements."""

    _regions: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    def place(self, what: str, values: Tensor, strides: Sequence[int], shift: int = 0) -> Tensor:
        """A tensor with these values and strides in a buffer of its own.

        Args:
            what: names it in errors.
            strides: in elements; 0 for elements that are all the same.
            shift: elements by which it begins later, so that its address is less aligned.
        """
        reach = 1 + sum((n - 1) * s for n, s in zip(values.shape, strides, strict=True) if n > 0)
        flat = self._filled(GUARD + shift + max(0, reach) + GUARD, values.dtype)
        view = flat.as_strided(values.shape, strides, GUARD + shift)
        # by their places, of which elements of stride 0 share one
        places = (
            torch.arange(len(flat)).as_strided(values.shape, strides, GUARD + shift).reshape(-1)
        )
        inside = torch.zeros(len(flat), dtype=torch.bool)
        inside[places] = True
        flat[places] = values.reshape(-1)
        self._regions.append((what, flat, inside))
        return view

    def check(self) -> None:
        """Raise AssertionError for a guard that somebody wrote to."""
        for what, flat, inside in self._regions:
            bytes_of = flat.detach().view(torch.uint8).view(len(flat), -1)
            touched = ((bytes_of != PATTERN).any(1) & ~inside).nonzero().flatten()
            assert not len(touched), (
                f"{what}: written outside of its elements, at {touched.tolist()[:8]}"
            )

    def forget(self) -> None:
        """Forget allocations, so that they may be freed; those in use are guarded no longer."""
        self._regions.clear()

    @staticmethod
    def _filled(numel: int, dtype: torch.dtype) -> Tensor:
        size = torch.empty((), dtype=dtype).element_size()
        return torch.full((numel * size,), PATTERN, dtype=torch.uint8).view(dtype)

    @contextmanager
    def around_arenas(self) -> Iterator[None]:
        """Guard what is moved or allocated meanwhile in arenas: each tensor of state, and parameters that are moved."""
        places: dict[int, tuple[Tensor, list[tuple[int, int]]]] = {}
        alias, place_in, move = arena._alias, arena._place_in, arena.move_into_arenas

        def spaced(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
            offsets, end = [], GUARD
            for tensor in tensors:
                offsets.append(end)
                end += arena.padded(tensor.numel()) + GUARD
            return offsets, end

        def noted(buffer: Tensor, offset: int, like: Tensor) -> Tensor:
            places.setdefault(id(buffer), (buffer, []))[1].append((offset, like.numel()))
            return alias(buffer, offset, like)

        def fill(what: str) -> None:
            for buffer, taken in places.values():
                inside = torch.zeros(len(buffer), dtype=torch.bool)
                for offset, numel in taken:
                    inside[offset : offset + numel] = True
                bytes_of = buffer.detach().view(torch.uint8).view(len(buffer), -1)
                bytes_of[~inside] = PATTERN
                self._regions.append((what, buffer.detach(), inside))
            places.clear()

        def guarded_place_in(*arguments: Any) -> Any:
            placed = place_in(*arguments)
            fill("an arena of state")
            return placed

        def guarded_move(parameters: Sequence[Tensor]) -> None:
            move(parameters)
            fill("an arena of parameters")

        with (
            mock.patch.object(arena, "_offsets", spaced),
            mock.patch.object(arena, "_alias", noted),
            mock.patch.object(arena, "_place_in", guarded_place_in),
            mock.patch("stackelberg_fused.engine.placement.move_into_arenas", guarded_move),
        ):
            yield
