"""Joint sets of sharded parameters: what is refused by name, on all ranks, and rows that no shard cuts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from backends import chosen
from cases import normal
from ranks import Ranks, of_ranks
from sharded_layouts import lay_out
from torch import nn
from wrapped_models import fsdp1, fsdp1_flat, plain

import stackelberg_fused as sf

pytestmark = of_ranks


def _sgd(params: Any, constraint: Any, backend: Any = "cpu") -> Any:
    return sf.StackelbergSGD(params, lr=1.0, constraint=constraint, backend=backend)


def _cut_rows(shape: tuple[int, ...], layout: str) -> None:
    params = [nn.Parameter(p) for p in lay_out([torch.ones(shape)], layout)]
    with pytest.raises(ValueError, match=r"parameter 0 of param group 0.*Simplex.*cuts the rows"):
        _sgd(params, sf.Simplex())
    # by an edit too, which changes nothing
    ours = _sgd(params, None)
    params[0].grad = lay_out([torch.ones(shape)], layout)[0]
    ours.param_groups[0]["constraint"] = sf.Simplex()
    with pytest.raises(ValueError, match="cuts the rows"):
        ours.step()
    assert bool(params[0].detach().full_tensor().eq(1.0).all())


@pytest.mark.parametrize(
    "shape, layout", [((4, 6), "columns"), ((6,), "rows")], ids=["columns", "vector"]
)
def test_a_simplex_of_which_a_shard_cuts_rows(
    ranks: Ranks, shape: tuple[int, ...], layout: str
) -> None:
    ranks(2, _cut_rows, shape, layout)


def _whole_rows(shape: tuple[int, ...], layout: str, backend: str) -> None:
    values = 3 * normal(shape, 1)
    found = []
    for p, grad in (
        (lay_out([values], layout)[0], lay_out([torch.zeros(shape)], layout)[0]),
        (values.clone(), torch.zeros(shape)),
    ):
        param = nn.Parameter(p)
        ours = _sgd([param], sf.Simplex(1.5), chosen(backend)[0])
        param.grad = grad
        ours.step()
        found.append(param.detach())
    assert torch.equal(found[0].full_tensor(), found[1])


@pytest.mark.parametrize("backend", ["cpu", "reference", "cuda-on-host"])
@pytest.mark.parametrize(
    "shape, layout, world",
    [((4, 6), "rows", 3), ((1, 6), "rows", 2), ((3, 4, 5), "columns", 2), ((6,), "rows", 1)],
    ids=["rows", "an empty shard", "columns of three dimensions", "one rank"],
)
def test_a_simplex_of_whole_rows(
    ranks: Ranks, shape: tuple[int, ...], layout: str, world: int, backend: str
) -> None:
    ranks(world, _whole_rows, shape, layout, backend)


def _several_meshes(fits: bool) -> None:
    square = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    from torch.distributed.tensor import Shard, distribute_tensor

    params = [
        nn.Parameter(distribute_tensor(torch.ones(4), square[name], [Shard(0)]))
        for name in ("outer", "inner")
    ]
    if fits:
        whole = distribute_tensor(torch.ones(4), square, [Shard(0), Shard(0)])
        params.append(nn.Parameter(whole))
        assert _sgd(params, sf.L2Ball(1.0)).backend == "cpu"
        return
    with pytest.raises(ValueError, match=r"param group 0.*neither of which has all ranks"):
        _sgd(params, sf.L2Ball(1.0))


@pytest.mark.parametrize("fits", [True, False])
def test_meshes_that_a_ball_may_be_over(ranks: Ranks, fits: bool) -> None:
    ranks(4, _several_meshes, fits)


def _partial() -> None:
    from torch.distributed.tensor import DTensor, Partial

    mesh = dist.init_device_mesh("cpu", (2,))
    param = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Partial()]))
    with pytest.raises(ValueError, match=r"parameter 0 of param group 0.*summed over ranks"):
        _sgd([param], sf.L2Ball(1.0))


def test_parameters_that_are_still_to_be_summed(ranks: Ranks) -> None:
    ranks(2, _partial)


def _flattened(wrap: Callable[[nn.Module], nn.Module], constraint: Any) -> None:
    model = wrap(plain())
    with pytest.raises(ValueError, match="FullyShardedDataParallel has left"):
        _sgd(model.parameters(), constraint)


@pytest.mark.parametrize("constraint", [sf.L2Ball(1.0), sf.Simplex()], ids=lambda s: s.kind)
@pytest.mark.parametrize("wrap", [fsdp1, fsdp1_flat])
def test_what_fsdp1_has_flattened(
    ranks: Ranks, wrap: Callable[[nn.Module], nn.Module], constraint: Any
) -> None:
    ranks(2, _flattened, wrap, constraint)
