"""The same bits however parameters are sharded: random numbers and blocks of codes go by the place in the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import normal
from ranks import Ranks, of_ranks
from torch import Tensor, nn
from wrapped_models import whole

import stackelberg_fused as sf

pytestmark = of_ranks
# odd sizes: some ranks hold less than others, or nothing; several tiles, and rows that end within a block of codes
BY_ROWS = [(7, 5), (70, 100), (130, 64), (1, 3), (2, 4100), (12, 3, 3, 3), (9,)]
BY_COLUMNS = [(6, 127), (70, 128), (3, 4, 64), (9,)]
LAYOUTS: dict[str, tuple[int, list[tuple[int, ...]]]] = {
    "2 by rows": (2, BY_ROWS),
    "3 by rows": (3, BY_ROWS),
    "2 by columns": (2, BY_COLUMNS),
    "copies of rows": (4, BY_ROWS),
    "rows and columns": (4, BY_COLUMNS),
    "rows of rows": (4, BY_ROWS),
}
ADAM, SGD = sf.StackelbergAdamW, sf.StackelbergSGD
SCHEMES: dict[str, tuple[Any, torch.dtype, dict[str, Any]]] = {
    "bf16 state": (ADAM, torch.float32, {"state_dtype": "bfloat16"}),
    "8 bits": (ADAM, torch.float32, {"state_dtype": "8bit", "amsgrad": True}),
    "bf16 stochastic": (ADAM, torch.bfloat16, {"master": "stochastic"}),
    "bf16 kahan, bf16 state": (
        ADAM,
        torch.bfloat16,
        {"master": "kahan", "state_dtype": "bfloat16"},
    ),
    "bf16 stochastic, 8 bits": (
        ADAM,
        torch.bfloat16,
        {"master": "stochastic", "state_dtype": "8bit", "ema_decay": 0.9},
    ),
    "bf16 split8, 8 bits": (ADAM, torch.bfloat16, {"master": "split8", "state_dtype": "8bit"}),
    "bf16 split16": (ADAM, torch.bfloat16, {"master": "split16"}),
    "bf16 fp32, 8 bits": (ADAM, torch.bfloat16, {"master": "fp32", "state_dtype": "8bit"}),
    "fp16 stochastic, 8 bits": (
        SGD,
        torch.float16,
        {"master": "stochastic", "state_dtype": "8bit", "momentum": 0.9},
    ),
}


def _lay_out(values: list[Tensor], layout: str) -> list[Any]:
    """Tensors of these values, sharded over all ranks."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    world = dist.get_world_size()
    shape = (2, 2) if world == 4 else (world,)
    mesh = dist.init_device_mesh("cpu", shape)
    out = []
    for value in values:
        second = Shard(1) if value.dim() > 1 else Replicate()
        placements = {
            "2 by columns": [second],
            "copies of rows": [Replicate(), Shard(0)],
            "rows and columns": [Shard(0) if value.dim() > 1 else Replicate(), second],
            "rows of rows": [Shard(0), Shard(0)],
        }.get(layout, [Shard(0)])
        out.append(distribute_tensor(value, mesh, placements))
    return out


def _trained(
    shapes: list[tuple[int, ...]], layout: str | None, backend: str, scheme: str
) -> dict[str, Tensor]:
    """Parameters and state after three steps, whole; `layout` None: not sharded."""
    kind, dtype, settings = SCHEMES[scheme]

    def laid_out(shift: int, dtype: torch.dtype) -> list[Any]:
        made = [normal(shape, shift + i).to(dtype) for i, shape in enumerate(shapes)]
        return made if layout is None else _lay_out(made, layout)

    params = [nn.Parameter(p) for p in laid_out(0, dtype)]
    optimizer = kind(params, lr=0.01, backend=backend, seed=3, **settings)
    for step in range(3):
        for p, grad in zip(params, laid_out(50 * step + 20, dtype), strict=True):
            p.grad = grad
        optimizer.step()
    found = {f"{i}": whole(p.detach()) for i, p in enumerate(params)}
    for i, p in enumerate(params):
        found.update({f"{i} {name}": whole(t) for name, t in optimizer.state[p].items()})
    return found


def _is_as_without_shards(layout: str, backend: str, scheme: str) -> None:
    shapes = LAYOUTS[layout][1]
    found = _trained(shapes, layout, backend, scheme)
    expected = _trained(shapes, None, backend, scheme)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_sharding(
    ranks: Ranks, layout: str, backend: str, scheme: str
) -> None:
    ranks(LAYOUTS[layout][0], _is_as_without_shards, layout, backend, scheme)

