"""Launches of the CUDA sources, caught where they would go to the driver."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any, NamedTuple

from .caught_launch import CaughtLaunch, Executor, packed, params_of
from .nvcc_build import MODULE, build

_Three = ctypes.c_uint32 * 3
_OnLaunch = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    *(ctypes.POINTER(_Three), ctypes.POINTER(_Three)),
    *(ctypes.c_uint64, ctypes.c_uint64),
    ctypes.POINTER(ctypes.c_void_p),
)
LAUNCH_FAILURE = 719  # cudaErrorLaunchFailure


class _Built(NamedTuple):
    module: ModuleType
    ptx: dict[str, str]  # the text by the kernels in it
    set_on_launch: Any


@cache
def _built() -> _Built:
    folder = build()
    path = str(folder / MODULE)
    loader = ExtensionFileLoader("_cuda", path)
    module = module_from_spec(ModuleSpec("_cuda", loader, origin=path))
    loader.exec_module(module)
    texts = [file.read_text() for file in sorted(folder.glob("*.ptx"))]
    ptx = {kernel: text for text in texts for kernel in params_of(text)}
    return _Built(module, ptx, ctypes.PyDLL(path).sf_set_on_launch)


def modules() -> tuple[str, ...]:
    """The PTX of every source."""
    return tuple(dict.fromkeys(_built().ptx.values()))


def native_module() -> ModuleType:
    """The extension module `_cuda`, of which every launch fails but within `catching`."""
    return _built().module


@contextmanager
def catching(executor: Executor) -> Iterator[None]:
    """Hand the launches of `native_module` over instead of failing; what `executor` raises comes out here."""
    built, raised = _built(), []

    def on_launch(
        name: bytes, grid: Any, block: Any, dynamic_shared: int, stream: int, args: Any
    ) -> int:
        try:
            executor(_caught(built, name.decode(), [*grid[0]], [*block[0]], dynamic_shared, args))
        except BaseException as error:  # it cannot pass through C++
            raised.append(error)
            return LAUNCH_FAILURE
        return 0

    callback = _OnLaunch(on_launch)
    built.set_on_launch(callback)
    try:
        yield
    except RuntimeError:
        if raised:
            raise raised[0] from None
        raise
    finally:
        built.set_on_launch(None)


def _caught(
    built: _Built, kernel: str, grid: list[int], block: list[int], dynamic_shared: int, args: Any
) -> CaughtLaunch:
    assert grid[1:] == block[1:] == [1, 1], (grid, block)
    ptx = built.ptx[kernel]
    params = params_of(ptx)[kernel]
    values = [ctypes.string_at(args[i], param.size) for i, param in enumerate(params)]
    return CaughtLaunch(
        *("nvcc", ptx, kernel, grid[0], block[0]), packed(params, values), dynamic_shared
    )
