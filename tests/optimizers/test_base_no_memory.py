"""Memory that runs out, at each allocation in turn: an error, nothing modified, and later calls do what they should."""

from __future__ import annotations

import pytest
from failing_allocator import SETTINGS, every_allocation


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_an_allocation_that_fails_modifies_nothing(
    settings: str, backend: str, flatten: bool
) -> None:
    assert every_allocation(settings, backend=backend, flatten=flatten)


def test_an_allocation_that_fails_modifies_nothing_where_gradients_are_flat() -> None:
    assert every_allocation("adamw", backend="cpu", grads="flat")
