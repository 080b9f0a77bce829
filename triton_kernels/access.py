"""Reads of the tables, and reads and writes of the buffers whose addresses are in them."""

from typing import NamedTuple

import triton
import triton.language as tl


class Elements(NamedTuple):
    """Some elements of a buffer.

    Attributes:
        index: block, their places, int64.
        mask: block, which of them exist; not read where all do.
    """

    index: tl.tensor
    mask: tl.tensor


@triton.jit
def load_words(table, COUNT: tl.constexpr):
    """The first words of a table's entry as a tuple; compiled kernels load those that they use."""
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
def pointers(address, index, FULL: tl.constexpr, TYPE: tl.constexpr = tl.float32):
    """Pointers to a buffer's elements. FULL: the buffer, and what is read of it, begin on a 128-bit boundary."""
    pointer = address.to(tl.pointer_type(TYPE))
    if FULL:
        # without the hint on the pointer after its cast Triton falls back to 32-bit accesses, and says nothing
        pointer = tl.multiple_of(pointer, 16)
    return pointer + index


@triton.jit
def load(address, elements, FULL: tl.constexpr, TYPE: tl.constexpr = tl.float32):
    """A buffer's elements, 0 where there is none. FULL: as in `pointers`, and all exist."""
    if FULL:
        # no mask: one would have to be known to be uniform over 128 bits to keep wide accesses
        return tl.load(pointers(address, elements.index, FULL, TYPE))
    else:
        return tl.load(pointers(address, elements.index, FULL, TYPE), mask=elements.mask, other=0)


@triton.jit
def store(address, elements, x, FULL: tl.constexpr, TYPE: tl.constexpr = tl.float32):
    """Write a buffer's elements; arguments as `load`."""
    if FULL:
        tl.store(pointers(address, elements.index, FULL, TYPE), x)
    else:
        tl.store(pointers(address, elements.index, FULL, TYPE), x, mask=elements.mask)
