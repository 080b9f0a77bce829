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
from wrapped_models import fsdp1, fsdp1_flat, fsdp1_together, fsdp1_whole, local, plain

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


# like no other: torch keeps plans by mesh and shape, with process groups that are gone by the next test
LENGTH = 44


def _over(*of_parameters: Any) -> list[nn.Parameter]:
    """A vector for each: over a new mesh of these ranks, plain for None."""
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Shard, distribute_tensor

    values = [torch.ones(LENGTH) for _ in of_parameters]
    return [
        nn.Parameter(
            value
            if ranks is None
            else distribute_tensor(value, DeviceMesh("cpu", ranks), [Shard(0)] * _dims(ranks))
        )
        for value, ranks in zip(values, of_parameters, strict=True)
    ]


def _dims(ranks: list[Any]) -> int:
    return torch.tensor(ranks).dim()


def _nested_meshes() -> str:
    with pytest.raises(ValueError, match=r"param group 0.*one of them alone") as error:
        _sgd(_over([0, 1], [0, 1, 2]), sf.L2Ball(1.0))
    params = _over([0, 1, 2], [1, 2])
    ours = _sgd(params, None)  # by an edit too
    ours.param_groups[0]["constraint"] = sf.L2Ball(1.0)
    with pytest.raises(ValueError, match="one of them alone"):
        ours.step()
    return str(error.value)


def test_meshes_of_which_one_has_more_ranks(ranks: Ranks) -> None:
    """The others would not learn of all elements: all ranks refuse, and say the same."""
    assert len(set(ranks(3, _nested_meshes))) == 1


def _same_ranks() -> None:
    params = _over([0, 1, 2, 3], [[0, 1], [2, 3]], [3, 2, 1, 0], None)
    ours = _sgd(params, sf.L2Ball(1.0))
    for p in params:
        p.grad = torch.zeros_like(p)
    ours.step()
    for p in params:
        assert float((local(p).detach() - (4 * LENGTH) ** -0.5).abs().max()) < 1e-5


def test_meshes_of_the_same_ranks(ranks: Ranks) -> None:
    ranks(4, _same_ranks)


def _outside() -> None:
    is_outside = dist.get_rank() == 2
    params = _over([0, 1])
    ours = _sgd(params, sf.L2Ball(1.0))
    for _ in range(2):
        params[0].grad = torch.zeros_like(params[0])
        ours.step()
    assert is_outside == (local(params[0]).numel() == 0)
    if not is_outside:
        assert float((local(params[0]).detach() - LENGTH**-0.5).abs().max()) < 1e-5
    # what it has all of would be scaled by another factor there
    params = _over([0, 1], None)
    if is_outside:
        with pytest.raises(ValueError, match=r"param group 0.*of which it has none"):
            _sgd(params, sf.L2Ball(1.0))


def test_a_rank_that_a_mesh_lacks(ranks: Ranks) -> None:
    ranks(3, _outside)


def _partial() -> None:
    from torch.distributed.tensor import DTensor, Partial

    mesh = dist.init_device_mesh("cpu", (2,))
    param = nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Partial()]))
    with pytest.raises(ValueError, match=r"parameter 0 of param group 0.*summed over ranks"):
        _sgd([param], sf.L2Ball(1.0))


def test_parameters_that_are_still_to_be_summed(ranks: Ranks) -> None:
    ranks(2, _partial)


def _whole_on_one_rank(wrap: Callable[[nn.Module], nn.Module], sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)))
    params = [*model.parameters()]
    assert {p.numel() for p in params} == set(sizes)
    for index in range(len(params)):  # each of them in a ball of its own
        groups: list[dict[str, Any]] = [{"params": [p]} for p in params]
        groups[index]["constraint"] = sf.L2Ball(1.0)
        with pytest.raises(ValueError, match=f"group {index}.*FullyShardedDataParallel has left"):
            _sgd(groups, None)
    clipped = sf.StackelbergSGD(params, lr=1.0, max_grad_norm=1.0)
    with pytest.raises(ValueError, match="FullyShardedDataParallel has left"):
        clipped.step()


def test_what_fsdp1_has_left_on_one_rank_alone(ranks: Ranks) -> None:
    """The rank that has all of a parameter refuses it as those that have nothing do."""
    ranks(2, _whole_on_one_rank, fsdp1_together, (0, 16))


def _not_dealt(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(plain())
    params = [p for p in model.parameters() if p.dim() == 2]
    ours = _sgd(params, sf.L2Ball(0.5))
    for p in params:
        p.grad = torch.zeros_like(p)
    ours.step()
    norm = float(torch.cat([p.detach().flatten() for p in params]).norm())
    assert norm == pytest.approx(0.5, rel=1e-3)


def test_what_fsdp1_leaves_whole_on_all_ranks(ranks: Ranks) -> None:
    ranks(2, _not_dealt, fsdp1_whole)


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
