"""A decision that is made once: whether native code reads torch's tensors, or Python.

`csrc/cpu/tensor_abi.cpp` reads tensors through functions of libtorch. Most are a C interface that torch keeps stable;
`c10::TensorImpl::grad` and `torch::autograd::impl::bump_version` are C++ functions that it does not, and neither is the
place in a Python object where its tensor is. Nor is a return type part of a C++ function's name in a library: another
torch could have a function of the same name that returns something else, and calling it would end the process. So when
the first optimizer is built:

1. `STACKELBERG_TENSOR_ABI=0` in the environment turns native reading off.
2. A torch without one of the functions is not read natively. Looking for them calls none.
3. Where the tests have not run this minor version of torch (`TESTED`), or it is a pre-release, a child process tries
   first, one for all processes that begin at once. A file keeps its verdict (`tensor_abi_verdict.py`,
   `tensor_abi_cache.py`); where it had none to give, `doctor` tries again.
4. In any case all that native code reads has to be what Python says (`tensor_abi_probe.py`).

Where one of these fails Python reads tensors one by one, with the same results.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import tensor_abi_verdict
from .tensor_abi_probe import open_abi

try:
    from .._cpu import find_libtorch
except ImportError:
    find_libtorch = None

log = logging.getLogger("stackelberg_fused")

SWITCH = "STACKELBERG_TENSOR_ABI"
TESTED = ("2.8", "2.13", "2.15")  # minor versions of torch that all tests have run


@dataclass(frozen=True, slots=True)
class Reading:
    """The way in which tensors are read.

    Attributes:
        abi: the native `TensorAbi`, or None where Python reads them.
        reason: in words, why so.
        increment_versions: as `torch.autograd.graph.increment_version`, of a list; those without a version are skipped.
    """

    abi: Any
    reason: str
    increment_versions: Callable[[list[Tensor]], None]


_reading: Reading | None = None


def reading(again: bool = False) -> Reading:
    """Return how tensors are read; finds out when it is first called.

    Args:
        again: try where an earlier process could not find out, however short a time ago.
    """
    global _reading
    if _reading is None:
        _reading = _find_out(again)
    return _reading


def tensor_abi() -> Any:
    """Return the native `TensorAbi`, or None where Python reads tensors."""
    return reading().abi


def increment_versions(tensors: list[Tensor]) -> None:
    """Tell autograd that tensors were written to."""
    (_reading or reading()).increment_versions(tensors)


def increment_in_python(tensors: list[Tensor]) -> None:
    """As `torch.autograd.graph.increment_version`, but for tensors without a version.

    That skips tensors of inference mode. It raises for such a parameter whose data were replaced since, as flattening
    does: torch no longer counts it among them.
    """
    try:
        increment_version(tensors)
    except RuntimeError:  # which of them, it does not say; twice is no matter
        for tensor in tensors:
            with suppress(RuntimeError):
                increment_version(tensor)


def is_tested(version: str) -> bool:
    """Tell whether the tests have run a release of torch of this minor version."""
    release = re.fullmatch(r"(\d+\.\d+)\.\d+(\+.*)?", version)
    return release is not None and release[1] in TESTED


def _find_out(again: bool) -> Reading:
    try:
        abi, reason = _open(again)
    except _NotNatively as error:
        log.info("tensors are read by Python, one by one: %s", error)
        return Reading(None, str(error), increment_in_python)
    return Reading(abi, reason, abi.increment_versions)


class _NotNatively(Exception):
    """Says why not."""


def _open(again: bool) -> tuple[Any, str]:
    if os.environ.get(SWITCH) == "0":
        raise _NotNatively(f"{SWITCH}=0")
    if find_libtorch is None:
        raise _NotNatively("the native module _cpu is missing")
    try:
        library = find_libtorch()
    except RuntimeError as error:
        raise _NotNatively(str(error)) from error
    version = torch.__version__
    reason = "the tests have run this minor version of torch"
    if not is_tested(version):
        reason = f"the tests have not run torch {version}"
        try:
            verdict = tensor_abi_verdict.verdict(library, again)
        except Exception as error:
            raise _NotNatively(f"{reason}, and {type(error).__name__}: {error}") from error
        if not verdict.works:
            raise _NotNatively(f"{reason}, and {verdict.reason}")
        reason += ", but a probe in a child process found nothing wrong"
    try:
        return _in_new_thread(open_abi), reason
    except Exception as error:
        raise _NotNatively(f"{type(error).__name__}: {error}") from error


def _in_new_thread(function: Callable[[], Any]) -> Any:
    """Call a function where no mode of the caller's is active: torch keeps them for each thread."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            found.append(function())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
