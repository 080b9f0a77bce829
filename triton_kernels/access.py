"""Pointers to the elements of buffers whose addresses are in the tables."""

import triton
import triton.language as tl


@triton.jit
def elements(address, index, FULL: tl.constexpr, TYPE: tl.constexpr = tl.float32):
    """Pointers to a buffer's elements; on the vector path the buffer is known to be aligned to 128 bits."""
    pointer = address.to(tl.pointer_type(TYPE))
    if FULL:
        # without the hint on the pointer after its cast Triton falls back to 32-bit accesses, and says nothing
        pointer = tl.multiple_of(pointer, 16)
    return pointer + index


@triton.jit
def load(address, at, FULL: tl.constexpr, TYPE: tl.constexpr):
    """A buffer's elements; `at`: their places, and whether there is one, else it is 0. FULL: all are there."""
    if FULL:
        return tl.load(elements(address, at[0], FULL, TYPE))
    else:
        return tl.load(elements(address, at[0], FULL, TYPE), mask=at[1], other=0)


@triton.jit
def store(address, at, x, FULL: tl.constexpr, TYPE: tl.constexpr):
    """Write a buffer's elements; arguments as `load`."""
    if FULL:
        tl.store(elements(address, at[0], FULL, TYPE), x)
    else:
        tl.store(elements(address, at[0], FULL, TYPE), x, mask=at[1])
