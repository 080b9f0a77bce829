"""Ranks of a mesh whose groups differ are all told so, by what differs first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks, of_ranks
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.engine.rank_agreement import refuse_different_ranks

pytestmark = of_ranks


def _shards(*shapes: tuple[int, ...], mesh: Any = None, dtype: Any = torch.float32) -> list[Any]:
    """Parameters of which each rank makes its part by itself: nobody waits for anybody."""
    from torch.distributed.tensor import DTensor, Shard

    mesh = mesh or dist.init_device_mesh("cpu", (dist.get_world_size(),))
    return [
        (f"layer{i}", nn.Parameter(_part(DTensor, Shard, shape, mesh, dtype)))
        for i, shape in enumerate(shapes)
    ]


def _part(dtensor: Any, shard: Any, shape: tuple[int, ...], mesh: Any, dtype: Any) -> Any:
    rows = len(torch.arange(shape[0]).chunk(mesh.size(0))[0])
    local = torch.ones(rows, *shape[1:], dtype=dtype)
    placements = [shard(0)] * mesh.ndim
    stride = torch.empty(shape, device="meta").stride()
    return dtensor.from_local(
        local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


# by name: what the second rank has in place of the first one's, and what all are told
DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "number of groups": (
        {"groups": 2},
        "the number of param groups with shards is 1 on rank 0, but 2 on rank 1",
    ),
    "number of parameters": (
        {"shapes": [(4, 2), (4, 3), (4,)]},
        "the number of parameters of param group 0 is 2 on rank 0, but 3 on rank 1",
    ),
    "shape": (
        {"shapes": [(4, 2), (4, 5)]},
        r"parameter 1 of param group 0 \(body\) is parameter 'layer1', whole shape \(4, 3\).* on rank 0, "
        r"but parameter 'layer1', whole shape \(4, 5\).* on rank 1",
    ),
    "order": ({"shapes": [(4, 3), (4, 2)]}, r"parameter 0 of param group 0 .*\(4, 2\).*\(4, 3\)"),
    "dtype": ({"dtype": torch.bfloat16}, r"parameter 0 of .*torch.float32.*torch.bfloat16"),
    "role": ({"role": "head"}, "role of param group 0 is 'body' on rank 0, but 'head' on rank 1"),
    "turns": ({"every": 2}, r"update_every of param group 0 \(body\) is 1 on rank 0, but 2 on"),
    "seed": ({"seed": 5}, r"seed of param group 0 \(body\) is 0 on rank 0, but 5 on rank 1"),
    "clipping": ({"norm": 1.0}, "max_grad_norm is None on rank 0, but 1.0 on rank 1"),
}


def _compare(
    shapes: Any = ((4, 2), (4, 3)),
    groups: int = 1,
    dtype: Any = torch.float32,
    role: Any = "body",
    every: int = 1,
    seed: int = 0,
    norm: float | None = None,
    lr: float = 0.1,
) -> None:
    named = _shards(*shapes, dtype=dtype)
    split = [named] if groups == 1 else [named[:1], named[1:]]
    ours = sf.StackelbergAdamW(
        [{"params": part, "role": role} for part in split], lr=lr, update_every=every, seed=seed
    )
    refuse_different_ranks(ours.param_groups, {"max_grad_norm": norm})


def _differs(case: str) -> None:
    other, message = DIFFERENT[case]
    rank, world = dist.get_rank(), dist.get_world_size()
    message = message.replace("on rank 1", f"on rank {world - 1}")
    with pytest.raises(ValueError, match=message):
        _compare(**other if rank == world - 1 else {})
    dist.barrier()
    _compare()  # the next ones agree


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_difference_is_told_on_every_rank(ranks: Ranks, case: str) -> None:
    ranks(3 if case == "shape" else 2, _differs, case)


def _agrees() -> None:
    # rates are each rank's own business
    _compare(lr=0.1 + dist.get_rank())
    # stages of a pipeline have other parameters on other ranks
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("stage", "inner"))
    stage = mesh.get_local_rank("stage")
    named = _shards((4 + stage, 2), mesh=mesh["inner"]) + _shards((8, 3), mesh=mesh)
    bare = [nn.Parameter(torch.ones(dist.get_rank()))]
    ours = sf.StackelbergAdamW([{"params": named}, {"params": [("bare", bare[0])]}])
    refuse_different_ranks(ours.param_groups, {})
    # without shards there is nothing to agree on
    refuse_different_ranks(sf.StackelbergAdamW(bare).param_groups, {"rank": dist.get_rank()})


def test_what_may_differ_is_not_compared(ranks: Ranks) -> None:
    ranks(4, _agrees)


def _one_is_missing(missing: int) -> None:
    ours = sf.StackelbergAdamW(_shards((4, 2)))
    dist.barrier()  # the others come at the same time
    if dist.get_rank() == missing:
        return
    with pytest.raises(RuntimeError, match=f"rank {missing} .* did not come"):
        refuse_different_ranks(ours.param_groups, {}, 1.0)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_rank_that_does_not_come_is_named(ranks: Ranks, missing: int) -> None:
    ranks(3, _one_is_missing, missing)
