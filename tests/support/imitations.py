"""Wrappers that imitate the class of the optimizer that they hold, as Lightning's and Fabric's do."""

from __future__ import annotations

from typing import Any

import pytest


def _imitate(wrapper: Any) -> None:
    inner = wrapper.optimizer
    wrapper.__class__ = type("Wrapped" + type(inner).__name__, (type(wrapper), type(inner)), {})


class Forwarding:
    """Reads from the optimizer what it has not itself, as Lightning's and Fabric's wrappers do."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        _imitate(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.optimizer, name)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class Copying:
    """Begins with the optimizer's attributes, as the same wrappers did in earlier versions."""

    def __init__(self, optimizer: Any) -> None:
        self.__dict__ = {k: v for k, v in vars(optimizer).items() if k != "step"}
        self.optimizer = optimizer
        _imitate(self)

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


by_wrapper = pytest.mark.parametrize("wrapper", [Forwarding, Copying])
