"""The same bits however parameters are sharded: random numbers and blocks of codes go by the place in the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from backends import chosen, rounds_fma_twice
from cases import normal
from ranks import Ranks, of_ranks
from torch import Tensor, nn
from wrapped_models import whole

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

pytestmark = of_ranks
# odd sizes: some ranks hold less than others, or nothing; several tiles, and rows that end within a block of codes
BY_ROWS = [(7, 5), (70, 100), (130, 64), (1, 3), (2, 4100), (12, 3, 3, 3), (9,)]
# of the second and the last, the first rank's columns are full blocks, though rows of the whole end within one
BY_COLUMNS = [(6, 127), (140, 127), (70, 128), (3, 4, 64), (9,), (20, 4095)]
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
    "bf16 split8, 8 bits, turns": (
        ADAM,
        torch.bfloat16,
        {
            "master": "split8",
            "state_dtype": "8bit",
            "update_every": {"body": 2},
            "update_every_grads": "mean",
            "constraint": sf.Box(-1.0, 0.5),
        },
    ),
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
    optimizer = kind(params, lr=0.01, backend=chosen(backend)[0], seed=3, **settings)
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


by_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.mark.skipif(is_interpreting(), reason="that process tests Triton")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@by_layout
def test_bits_do_not_depend_on_sharding(
    ranks: Ranks, layout: str, backend: str, scheme: str
) -> None:
    ranks(LAYOUTS[layout][0], _is_as_without_shards, layout, backend, scheme)


# these launch a block for each tile, one after the other on the host: fewer of all pairs
SOME = [
    ("3 by rows", "8 bits"),
    ("rows and columns", "bf16 stochastic, 8 bits"),
    ("3 by rows", "bf16 split8, 8 bits, turns"),
]


@pytest.mark.parametrize("backend", ["triton"] if is_interpreting() else ["cuda-on-host", "avx2"])
@pytest.mark.parametrize("layout, scheme", SOME)
def test_bits_of_blocks_do_not_depend_on_sharding(
    ranks: Ranks, layout: str, backend: str, scheme: str
) -> None:
    ranks(LAYOUTS[layout][0], _is_as_without_shards, layout, backend, scheme)


@pytest.mark.skipif(rounds_fma_twice(), reason="Triton's interpreter before 3.9 rounds fma twice")
@pytest.mark.parametrize("backend", ["triton"] if is_interpreting() else ["cuda-on-host", "avx2"])
def test_backends_agree_on_shards(ranks: Ranks, backend: str) -> None:
    ranks(3, _is_as_on_the_cpu, backend)


def _is_as_on_the_cpu(backend: str) -> None:
    for scheme in SCHEMES:
        found, expected = (_trained(BY_ROWS, "3 by rows", b, scheme) for b in (backend, "cpu"))
        for name, value in expected.items():
            assert torch.equal(found[name], value), f"{scheme}: {name}"


def _is_as_the_slices_of_the_whole(scheme: str) -> None:
    """Rows of a layer that tensor parallelism cuts first, and FSDP2 then cuts anew."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    kind, dtype, settings = SCHEMES[scheme]
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    torch.manual_seed(5)
    plain, cut = nn.Linear(100, 72, bias=False), nn.Linear(100, 72, bias=False)
    cut.load_state_dict(plain.state_dict())
    plain, cut = plain.to(dtype), cut.to(dtype)
    parallelize_module(cut, mesh["tensor"], ColwiseParallel())
    fully_shard(cut, mesh=mesh["data"])
    shard: Any = cut.weight
    data, tensor = mesh.get_coordinate() or (0, 0)
    mine = slice(36 * tensor + 18 * data, 36 * tensor + 18 * data + 18)
    assert torch.equal(shard.to_local(), plain.weight[mine])
    ours, whole_one = (
        kind(m.parameters(), lr=0.01, backend="cpu", seed=3, **settings) for m in (cut, plain)
    )
    for step in range(3):
        grad = normal((72, 100), step).to(dtype)
        plain.weight.grad = grad.clone()
        shard.grad = DTensor.from_local(
            grad[mine].clone(),
            shard.device_mesh,
            shard.placements,
            run_check=False,
            shape=shard.shape,
            stride=shard.stride(),
        )
        ours.step()
        whole_one.step()
    assert torch.equal(shard.to_local(), plain.weight[mine])
    for name, value in whole_one.state[plain.weight].items():
        found = ours.state[shard][name]
        if value.dim():
            assert torch.equal(found.to_local(), value[mine]), name


@pytest.mark.skipif(is_interpreting(), reason="that process tests Triton")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bits_under_tensor_parallelism_and_fsdp(ranks: Ranks, scheme: str) -> None:
    ranks(4, _is_as_the_slices_of_the_whole, scheme)


def _refuses(layout: str, shape: tuple[int, ...]) -> str:
    params = [nn.Parameter(p) for p in _lay_out([normal(shape, 0)], layout)]
    try:
        sf.StackelbergAdamW([{"params": [("net.weight", params[0])]}], state_dtype="8bit")
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.skipif(is_interpreting(), reason="that process tests Triton")
def test_a_shard_that_cuts_a_block_is_refused_on_all_ranks(ranks: Ranks) -> None:
    said = ranks(2, _refuses, "2 by columns", (4, 100))
    assert said[0] == said[1]
    assert "parameter 'net.weight' of param group 0 (body)" in said[0]
    assert "cut blocks of 32 elements" in said[0]
    assert ranks(2, _refuses, "2 by columns", (4, 128)) == ["", ""]
    assert ranks(2, _refuses, "2 by rows", (5, 100)) == ["", ""]


def _reloads(values: Tensor) -> None:
    """Its own state dict, where every rank has all of a parameter that is not contiguous."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = dist.init_device_mesh("cpu", (2,))
    param = nn.Parameter(DTensor.from_local(values.clone(), mesh, [Replicate()]))
    ours = sf.StackelbergAdamW([param], state_dtype="8bit", backend="cpu")
    param.grad = DTensor.from_local(torch.ones_like(values), mesh, [Replicate()])
    ours.step()
    scales = ours.state[param]["exp_avg_scale"]
    assert scales.shape == scales.to_local().shape
    ours.load_state_dict(ours.state_dict())
    ours.step()


@pytest.mark.skipif(is_interpreting(), reason="that process tests Triton")
def test_copies_of_columns_reload_their_own_state(ranks: Ranks) -> None:
    ranks(2, _reloads, normal((40, 70), 0).t())
