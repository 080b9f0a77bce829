"""Slots: the place of one parameter in a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..groups.schemes import EIGHT_BITS, Scheme, moment_of
from ..memory.region import Region, region_of, whole_region
from ..memory.sharding import is_sharded
from ..numerics.block_rows import block_row_of, layout_of, scale_shape


class Kind(NamedTuple):
    """The properties of a parameter that decide which backend can update it.

    Attributes:
        is_direct: the rule works on the tensors as they are stored, see `Scheme`; alike in a group with a joint set.
        has_joint_set: the parameter is not direct and is projected by a launch of its own.
        has_memory: the parameter is of no kind without memory of its own, see `is_abstract`.
    """

    device: torch.device
    dtype: torch.dtype
    is_direct: bool = True
    has_joint_set: bool = False
    has_memory: bool = True


@dataclass(slots=True)
class Slot:
    """One parameter's place in a table.

    Attributes:
        param: the parameter as the user holds it.
        name: of the parameter in errors.
        group: index of its param group.
        role: "body" or "head".
        position: among the parameters of its group.
        local: the plain tensor whose memory is updated: `param`, or the local shard of a DTensor.
        dense: whether `local` fills a gap-free run of memory; if not, the update goes through a dense copy.
        scheme: of its storage.
        key: of its random numbers.
    """

    param: Tensor
    name: str
    group: int
    role: str
    position: int
    local: Tensor
    dense: bool
    scheme: Scheme
    key: int

    def dense_like(self) -> Tensor:
        """A tensor with the shape and strides that state and flat gradients have."""
        if self.dense:
            return self.local.detach()
        return torch.empty_like(self.local, memory_format=torch.contiguous_format)

    @property
    def region(self) -> Region:
        """Where `local` lies in the whole parameter, as far as it matters: for random numbers."""
        if self.scheme.draws:
            return region_of(self.param, self.name)
        return whole_region(self.local.numel())

    @property
    def block_row(self) -> int:
        """`block_row` of the slot's record."""
        if self.scheme.state is not EIGHT_BITS:
            return 0
        whole = layout_of(self.param) if is_sharded(self.param) else None
        return block_row_of(self.dense_like(), whole)

    def state_like(self, name: str) -> Tensor:
        """A tensor without memory, of the shape, strides and dtype that a tensor of its state has."""
        is_scale = name.endswith("_scale")
        like = self.dense_like()
        if is_scale:
            like = torch.empty(scale_shape(like), device="meta")
        dtype = self.scheme.dtypes(moment_of(name))[name]
        return torch.empty_strided(like.shape, like.stride(), dtype=dtype, device="meta")


class Span(NamedTuple):
    """The slots and tiles of one role, or of all."""

    first_slot: int
    last_slot: int
    first_tile: int
    last_tile: int

    @property
    def here(self) -> slice:
        """The slots, to index an array with one entry for each slot of the table."""
        return slice(self.first_slot, self.last_slot)

    @property
    def indices(self) -> range:
        """The slots."""
        return range(self.first_slot, self.last_slot)
