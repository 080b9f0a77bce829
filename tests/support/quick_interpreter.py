"""Makes Triton's interpreter faster for our kernels, and as strict in every version as in the newest.

A launch patches Triton's language for the time that it takes, and then anew at each call of a function of the kernel's,
which costs more than the function does: once for each module is enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def refuse_integer_masks() -> None:
    """Raise where a load or store is masked by integers, as the interpreter does from Triton 3.9 on."""
    try:
        from triton.runtime.interpreter import InterpreterBuilder
    except ImportError:
        return
    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        setattr(InterpreterBuilder, name, _checked(getattr(InterpreterBuilder, name), place))


def _checked(access: Any, place: int) -> Any:
    def masked(builder: Any, *args: Any, **kwargs: Any) -> Any:
        if args[place].data.dtype != np.bool_:
            raise ValueError(f"a mask of {args[place].data.dtype}, not of bool")
        return access(builder, *args, **kwargs)

    return masked


def patch_once_per_launch() -> None:
    """For this process, where this Triton has what is to be replaced."""
    try:
        from triton.runtime import interpreter

        patch, call = interpreter._patch_lang, interpreter.GridExecutor.__call__
    except (ImportError, AttributeError):
        return
    patched: dict[
        int, Any
    ] = {}  # by the launch that runs, for the language that a module has imported

    def patch_first(fn: Any) -> Any:
        module = id(fn.__globals__)
        if module not in patched:
            patched[module] = patch(fn)
        return patched[module]

    def launch(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        finally:
            patched.clear()

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_first, launch
