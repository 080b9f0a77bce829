"""Where shards lie in the whole parameter, against what torch puts there; and who may cut blocks of codes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import Ranks, of_ranks
from torch import Tensor

from stackelberg_fused.memory.region import Region, region_of, whole_region
from stackelberg_fused.numerics.block_rows import check_blocks

SHAPES = [
    (),
    (1,),
    (64,),
    (96,),
    (7, 5),
    (4, 64),
    (3, 96),
    (2, 100),
    (1, 128),
    (5, 2, 3),
    (4, 2, 32),
]
SHAPES += [(0, 4), (6, 3, 3, 3), (2, 33)]


def _indices(region: Region, numel: int) -> Tensor:
    index = torch.arange(numel)
    return region.start + index // max(region.run, 1) * region.stride + index % max(region.run, 1)


def _said(function: Any, *args: Any) -> str:
    """Return the error of a call, or nothing."""
    try:
        function(*args)
    except ValueError as error:
        return str(error)
    return ""


def _blocks(whole: Any, local: Tensor) -> set[int]:
    """Return the blocks of codes that a shard of consecutive numbers has elements of."""
    length = math.prod(whole.shape[1:]) if whole.dim() > 1 else whole.numel()
    row, column = np.divmod(local.reshape(-1).numpy(), max(length, 1))
    return set((row * (length // 32 + 1) + column // 32).tolist())


def _place(shape: tuple[int, ...]) -> list[tuple[str, bool, str, str, set[int]]]:
    """Return of each layout: its name, whether its region is right, the refusals of both, and its blocks here."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    world = dist.get_world_size()
    mesh = dist.init_device_mesh("cpu", (2, 2) if world == 4 else (world,))
    kinds = [Replicate(), *(Shard(d) for d in range(len(shape)))]
    found = []
    for placements in itertools.product(kinds, repeat=mesh.ndim):
        numbers = torch.arange(math.prod(shape)).view(shape)
        param = distribute_tensor(numbers, mesh, list(placements))
        local = param.to_local()
        said = _said(region_of, param, "the weight")
        right = said or torch.equal(_indices(region_of(param), local.numel()), local.reshape(-1))
        copies = any(p.is_replicate() for p in placements)
        cut = _said(check_blocks, param, "the weight")
        blocks = set() if copies else _blocks(param, local)
        found.append((f"{shape} {placements}", right is not False, said, cut, blocks))
    return found


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestOnRanks:
    pytestmark = of_ranks

    def test_a_region_says_which_elements_a_rank_has(
        self, ranks: Ranks, world: int, shape: tuple[int, ...]
    ) -> None:
        for same_layout in zip(*ranks(world, _place, shape), strict=True):
            layout, _, said, cut, _ = same_layout[0]
            assert all(right for _, right, _, _, _ in same_layout), layout
            # all ranks refuse a layout, or none: else some would wait for those that did
            assert all(of_rank[2:4] == (said, cut) for of_rank in same_layout), layout
            if not cut:
                held = [block for of_rank in same_layout for block in of_rank[4]]
                assert len(held) == len(set(held)), f"{layout}: ranks share a block of codes"

    def test_rows_are_never_refused(self, ranks: Ranks, world: int, shape: tuple[int, ...]) -> None:
        if len(shape) > 1:
            for layout, _, said, cut, _ in ranks(world, _place, shape)[0]:
                if "dim=1" not in layout and "dim=2" not in layout and "dim=3" not in layout:
                    assert (said, cut) == ("", ""), layout


def _strided_alone(_: int) -> list[str]:
    """FSDP2's shard of what tensor parallelism has cut, without the latter."""
    from torch.distributed.tensor import Replicate, distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard

    mesh = dist.init_device_mesh("cpu", (2, 2))
    placements = [_StridedShard(0, split_factor=2), Replicate()]
    param = distribute_tensor(torch.arange(32).view(8, 4), mesh, placements)
    return [_said(region_of, param, "the weight")]


@pytest.mark.xdist_group("ranks")
@pytest.mark.slow
def test_rows_with_gaps_are_refused(ranks: Ranks) -> None:
    for (said,) in ranks(4, _strided_alone, 0):
        assert "the weight: placements" in said
        assert "do not say where the elements of this rank belong" in said


def test_a_plain_tensor_is_all_of_its_parameter() -> None:
    param = torch.zeros(3, 5)
    assert region_of(param) == whole_region(15) == Region(0, 15, 15)
    check_blocks(param, "it")
