"""Imports timm where there is no torchvision.

A build of torchvision fits one build of torch: PyPI's, which is for CUDA, cannot be imported beside torch's CPU build
("operator torchvision::nms does not exist"). timm imports it for image transforms and data sets; optimizers, schedulers
and models need none of these.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any
from unittest import mock

NAME = "torchvision"


class _Anything(type):
    """A class whose attributes are classes too: what modules take as a default, or derive from."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Stub(ModuleType):
    __path__: Sequence[str] = []
    __version__ = "0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname.partition(".")[0] != NAME:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def import_with_stub(name: str) -> ModuleType:
    """Import a module that imports torchvision, which is real where it works; nothing is left of the stub after it."""
    try:
        importlib.import_module(NAME)
    except (ImportError, RuntimeError):
        pass
    else:
        return importlib.import_module(name)
    before = {key for key in sys.modules if key.partition(".")[0] == NAME}
    for key in before:
        del sys.modules[key]
    with mock.patch.object(sys, "meta_path", [_Finder(), *sys.meta_path]):
        found = importlib.import_module(name)
    for key in [key for key in sys.modules if key.partition(".")[0] == NAME]:
        del sys.modules[key]
    return found
