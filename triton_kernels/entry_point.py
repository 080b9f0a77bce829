"""Kernels that are launched, as Triton compiles them."""

import inspect
from collections.abc import Callable
from typing import Any

import triton


def entry_point(kernel: Callable[..., None]) -> Any:
    """Compile one kernel for every set of constants, whatever the other arguments are.

    Triton would by default compile another one for integers that are 1 or divisible by 16 and for pointers that are
    not, such as one into the middle of a buffer. No access gets wider by that: what is known of an address that is read
    from a table is stated where it is read.
    """
    arguments = inspect.signature(kernel).parameters.values()
    others = [one.name for one in arguments if "constexpr" not in str(one.annotation)]
    return triton.jit(do_not_specialize=others)(kernel)
