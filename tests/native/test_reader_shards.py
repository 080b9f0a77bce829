"""Both readers say the same of DTensors, and read them without a look of their own at each."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from cases import normal
from needs import needs_gloo, needs_native
from torch import Tensor, nn

from stackelberg_fused.native.reader import NativeReader, PythonReader, make_reader
from stackelberg_fused.native.tables import RECORD

dist = torch.distributed
pytestmark = [needs_native, needs_gloo]
SHAPES: tuple[tuple[int, ...], ...] = ((4, 6), (5,), (1,), (0, 3), (2, 3, 2), (1, 1))


@pytest.fixture(scope="module", params=[(1,), (1, 1)], ids=["1-D mesh", "2-D mesh"])
def mesh(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", request.param)
    dist.destroy_process_group()


def _shard(local: Tensor, mesh: Any, placements: Any = None) -> Any:
    """A DTensor with a spec, and placements, of its own."""
    from torch.distributed.tensor import DTensor, Shard

    placements = placements or [Shard(0) for _ in range(mesh.ndim)]
    return DTensor.from_local(local, mesh, placements, run_check=False)


class Sides:
    """The same parameters, shards and not, in front of both readers."""

    def __init__(self, mesh: Any) -> None:
        self.mesh = mesh
        self.params: list[Any] = [
            nn.Parameter(_shard(normal(shape, i), mesh)) for i, shape in enumerate(SHAPES)
        ]
        self.params.append(nn.Parameter(normal((3, 3), 9)))  # no shard
        self.locals = [getattr(p, "_local_tensor", p) for p in self.params]
        count = len(self.params)
        self.records = [np.zeros(count, RECORD) for _ in range(2)]
        self.active = [np.zeros(count, bool) for _ in range(2)]
        self.readers = [
            PythonReader(self.params, self.locals, self.records[0], self.active[0]),
            make_reader(self.params, self.locals, self.records[1], self.active[1]),
        ]
        assert type(self.readers[1]) is NativeReader
        for records in self.records:
            records["param"] = [local.data_ptr() for local in self.locals]

    def set_gradients(self) -> list[Tensor]:
        """Give each parameter a new gradient; returns what their memory is."""
        locals_ = [normal(tuple(local.shape), 20 + i) for i, local in enumerate(self.locals)]
        for p, local in zip(self.params, locals_, strict=True):
            p.grad = local if p is self.params[-1] else _shard(local, self.mesh)
        return locals_

    def read(self, first: int = 0, last: int | None = None) -> tuple[Any, ...]:
        last = len(self.params) if last is None else last
        python, native = (side.read(first, last) for side in self.readers)
        assert python[:4] == native[:4]
        assert self.records[0].tobytes() == self.records[1].tobytes()
        assert self.active[0].tolist() == self.active[1].tolist()
        return native[:4]


def test_gradients_that_come_stay_and_go(mesh: Any) -> None:
    sides = Sides(mesh)
    assert sides.read() == ([], [], False, False)
    found = sides.set_gradients()
    assert sides.read() == ([], [], True, True)
    assert sides.records[1]["grad"].tolist() == [local.data_ptr() for local in found]
    assert sides.read() == ([], [], False, False)
    sides.params[1].grad = None
    assert sides.read(2, 4) == ([], [], False, False)
    assert sides.read() == ([], [], True, True)
    kept = found, sides.set_gradients()
    assert sides.read() == ([], [], True, True)
    del kept


def test_gradients_laid_out_in_another_way(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Partial, Replicate

    sides = Sides(mesh)
    sides.set_gradients()
    sides.read()
    weight = sides.params[0]
    for placement in (Replicate(), Partial()):
        weight.grad = _shard(normal((4, 6), 1), mesh, [placement] * mesh.ndim)
        assert sides.read() == ([], [0], False, False)
    other = dist.device_mesh.init_device_mesh(
        "cpu", (1,) * mesh.ndim, mesh_dim_names=("a", "b")[: mesh.ndim]
    )
    weight.grad = _shard(normal((4, 6), 1), other)
    # names of dimensions do not tell meshes of the same ranks apart in every torch
    assert sides.read()[1] == ([] if other == mesh else [0])
    if hasattr(weight, "grad_dtype"):
        weight.grad_dtype = None  # any
    for local in (
        torch.zeros(6, 4).t(),
        torch.zeros(4, 6, dtype=torch.float64),
        torch.zeros(4, 6).to_sparse(),
    ):
        weight.grad = DTensor(local, weight._spec, requires_grad=False)
        assert sides.read()[1] == [0]


def test_a_shard_that_is_exchanged(mesh: Any) -> None:
    sides = Sides(mesh)
    sides.set_gradients()
    sides.read()
    param = sides.params[1]
    kept, param._local_tensor = param._local_tensor, normal(5, 3)
    assert sides.read() == ([1], [], False, False)
    param._local_tensor = kept
    assert sides.read() == ([], [], False, False)


def test_one_lazily_negated_element(mesh: Any) -> None:
    sides = Sides(mesh)
    sides.set_gradients()
    sides.read()
    sides.params[2].grad = _shard(torch._neg_view(torch.ones(1)), mesh)
    assert sides.read()[1] == [2]


def test_subclasses_are_left_to_python(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor

    class Other(DTensor):
        pass

    param = nn.Parameter(_shard(normal((4, 6), 1), mesh))
    assert isinstance(param, DTensor)
    other = Other(param._local_tensor, param._spec, requires_grad=True)
    records, active = np.zeros(1, RECORD), np.zeros(1, bool)
    reader = make_reader([other], [other._local_tensor], records, active)
    records["param"] = other._local_tensor.data_ptr()
    other.grad = DTensor(normal((4, 6), 2), param._spec, requires_grad=False)
    assert reader.read(0, 1)[:2] == ([0], [0])


def test_gradients_and_specs_are_let_go(mesh: Any) -> None:
    sides = Sides(mesh)
    sides.set_gradients()
    grads = [p.grad for p in sides.params[:-1]]
    specs = [grad._spec for grad in grads]

    def counts(held: list[Any]) -> list[int]:
        return [sys.getrefcount(each) for each in held]

    of_grads, of_specs = counts(grads), counts(specs)
    answer = sides.readers[1].read(0, len(sides.params))
    assert counts(grads) != of_grads
    del answer
    assert counts(grads) == of_grads
    for p in sides.params:
        p.grad = None
    sides.set_gradients()
    sides.readers.clear()
    gc.collect()
    assert counts(specs) == of_specs
