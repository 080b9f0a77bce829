"""What Triton before 3.5 leaves out of the names under which it keeps compiled kernels on disk.

Those versions go by a kernel's source text and arguments, not by the constants that it reads: after an update of this
library whose tables differ they would launch what they had compiled for the tables before. See
https://github.com/triton-lang/triton/issues/7322.
"""

import functools
import hashlib
from typing import Any

import triton.language as tl


@functools.cache
def constants_of(kernel: Any) -> str:
    """All constants that a kernel and the functions it calls read, as an argument that tells compiled kernels apart.

    Empty for an interpreted kernel, which is not compiled.
    """
    if not hasattr(kernel, "cache_key"):
        return ""
    kernel.cache_key  # noqa: B018  finds the constants
    used = kernel.used_global_vals.items()
    values = {
        (name, repr(value)) for (name, _), (value, _) in used if isinstance(value, tl.constexpr)
    }
    return hashlib.sha256(repr(sorted(values)).encode()).hexdigest()[:16]
