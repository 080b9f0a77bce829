"""Reads of the tables, and of the buffers whose addresses are in them."""

import triton
import triton.language as tl


@triton.jit
def load_words(table, COUNT: tl.constexpr):
    """The first words of a table's entry as a tuple; those that nobody uses are not loaded in the end."""
    words = (tl.load(table),)
    for k in tl.static_range(1, COUNT):
        words = words + (tl.load(table + k),)
    return words


@triton.jit
def replaced(words, WORD: tl.constexpr, value):
    """The tuple with another value in one place."""
    return words[:WORD] + (value,) + words[WORD + 1 :]


@triton.jit
def mask_where(mask, condition):
    """`mask` if the scalar `condition` holds, else no element.

    `mask & condition` is not enough: in the interpreter it consists of integers, which Triton 3.9 refuses as a mask.
    """
    return (mask & condition) != 0


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
