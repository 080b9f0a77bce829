"""A key of the constants that a kernel reads, for Triton before 3.5.

Those versions look compiled kernels up on disk by source text and arguments alone. After an update of this library that
changed a table, they would launch kernels that were compiled for the table before it. See
https://github.com/triton-lang/triton/issues/7322.
"""

import functools
import hashlib
from typing import Any

import triton.language as tl


@functools.cache
def constants_of(kernel: Any) -> str:
    """Return a digest of all constants that a kernel and the functions it calls read, to be an argument of the kernel.

    It is empty for an interpreted kernel, which is not compiled.
    """
    if not hasattr(kernel, "cache_key"):
        return ""
    kernel.cache_key  # noqa: B018  finds the constants
    used = kernel.used_global_vals.items()
    values = {
        (name, repr(value)) for (name, _), (value, _) in used if isinstance(value, tl.constexpr)
    }
    return hashlib.sha256(repr(sorted(values)).encode()).hexdigest()[:16]
