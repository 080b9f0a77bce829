"""Makes Triton's interpreter faster for our kernels.

A launch patches Triton's language for the time that it takes, and then anew at each call of a function of the kernel's,
which costs more than the function does: once for each module is enough.
"""

from __future__ import annotations

from typing import Any


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
