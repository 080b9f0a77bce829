"""Both readers say the same of whatever parameters and gradients may become, and write the same addresses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import normal
from needs import needs_native
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import stackelberg_fused as sf
from stackelberg_fused.native.reader import NativeReader, PythonReader, make_reader
from stackelberg_fused.native.tables import RECORD
from stackelberg_fused.native.tensor_abi import tensor_abi

SHAPES: tuple[tuple[int, ...], ...] = ((4, 4), (), (1,), (0, 3), (2, 1, 3), (7,))


class Sides:
    """The same parameters in front of both readers."""

    def __init__(self, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> None:
        self.params = [nn.Parameter(normal(shape, i)) for i, shape in enumerate(shapes)]
        count = len(self.params)
        self.records = [np.zeros(count, RECORD) for _ in range(2)]
        self.active = [np.zeros(count, bool) for _ in range(2)]
        self.readers = [
            PythonReader(self.params, self.params, self.records[0], self.active[0]),
            make_reader(self.params, self.params, self.records[1], self.active[1]),
        ]
        assert type(self.readers[1]) is NativeReader
        for records in self.records:
            records["param"] = [p.data_ptr() for p in self.params]

    def read(self, first: int = 0, last: int | None = None) -> tuple[Any, ...]:
        last = len(self.params) if last is None else last
        python, native = (side.read(first, last) for side in self.readers)
        assert python[:4] == native[:4]
        assert self.records[0].tobytes() == self.records[1].tobytes()
        assert self.active[0].tolist() == self.active[1].tolist()
        return native[:4]


@needs_native
def test_gradients_that_come_stay_and_go() -> None:
    sides = Sides()
    count = len(sides.params)
    assert sides.read() == ([], [], False, False)
    for p in sides.params:
        p.grad = torch.zeros_like(p)
    assert sides.read() == ([], [], True, True)
    assert sides.records[1]["grad"].tolist() == [p.grad.data_ptr() for p in sides.params]
    assert sides.read() == ([], [], False, False)
    kept = [p.grad for p in sides.params]  # or the new ones might take the old ones' places
    for p in sides.params[:2]:
        p.grad = torch.ones_like(p)
    assert sides.read() == ([], [], True, False)
    sides.params[0].grad = None
    assert sides.read(1, count) == ([], [], False, False)
    assert sides.read() == ([], [], True, True)
    assert sides.active[1].tolist() == [False] + [True] * (count - 1)
    del kept


GRADIENTS: dict[str, tuple[int, Callable[[Tensor], Tensor], bool]] = {
    # slot, gradient, whether it is to be looked at more closely
    "transposed": (0, lambda p: torch.zeros(4, 4).t(), True),
    "gaps": (0, lambda p: torch.zeros(4, 8)[:, ::2], True),
    "expanded": (0, lambda p: torch.zeros(1).expand(4, 4), True),
    "other shape, same size": (4, lambda p: torch.zeros(2, 3, 1), True),
    "other dtype": (5, lambda p: torch.zeros(7, dtype=torch.float64), True),
    "sparse": (0, lambda p: torch.zeros(4, 4).to_sparse(), True),
    "negated scalar": (1, lambda p: torch.tensor(1j).conj().imag, True),
    "negated element": (2, lambda p: torch.ones(1, dtype=torch.complex64).conj().imag, True),
    "stride never taken": (4, lambda p: torch.zeros(2, 3).as_strided((2, 1, 3), (3, 5, 1)), False),
    "slice": (5, lambda p: torch.zeros(9)[1:8], False),
    "empty with other strides": (3, lambda p: torch.zeros(3, 0).t(), False),
}


@needs_native
@pytest.mark.parametrize("name", GRADIENTS)
def test_odd_gradients(name: str) -> None:
    sides = Sides()
    slot, make, odd = GRADIENTS[name]
    param = sides.params[slot]
    with torch.no_grad():
        grad = make(param)
    if grad.shape == param.shape and grad.dtype == param.dtype:
        param.grad = grad
    else:  # torch lets nobody assign it, but data can be rebound
        param.grad = torch.zeros_like(param)
        param.grad.data = grad
    moved, found, changed, switched = sides.read()
    assert (moved, found) == ([], [slot] if odd else [])
    assert switched
    if not odd and grad.numel():
        assert changed
        assert sides.records[1]["grad"][slot] == grad.data_ptr()


REBOUND: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "other memory": (lambda p: p.clone(), True),
    "same memory, other strides": (lambda p: p.t(), True),
    "other dtype": (lambda p: p.double(), True),
    "other shape": (lambda p: p[:2], True),
    "itself": (lambda p: p, False),
}


@needs_native
@pytest.mark.parametrize("name", REBOUND)
def test_rebound_parameters(name: str) -> None:
    sides = Sides()
    make, moved = REBOUND[name]
    sides.params[0].data = make(sides.params[0].data)
    before = sides.records[1].copy()
    assert sides.read()[0] == ([0] if moved else [])
    assert (sides.records[1]["param"] == before["param"]).all()  # for the caller to write


@needs_native
def test_a_type_with_a_grad_of_its_own_is_asked() -> None:
    class Mine(nn.Parameter):
        given = torch.ones(3)

        @property
        def grad(self) -> Tensor:
            return self.given

    param = Mine(torch.zeros(3))
    records, active = np.zeros(1, RECORD), np.zeros(1, bool)
    made = make_reader([param], [param], records, active)
    assert type(made) is NativeReader
    made.read(0, 1)
    assert active[0]
    assert records["grad"][0] == Mine.given.data_ptr()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_type_that_intercepts_its_gradient_is_asked(when: str) -> None:
    class Scaled(nn.Parameter):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                found = func(*args, **(kwargs or {}))
            return found * 10 if func == Tensor.grad.__get__ and found is not None else found

    param = nn.Parameter(torch.zeros(3))
    if when == "before":
        param.__class__ = Scaled
    ours = sf.StackelbergSGD([param], lr=1.0, backend="cpu", flatten=False)
    param.__class__ = Scaled
    Tensor.grad.__set__(param, torch.ones(3))
    ours.step()
    with torch._C.DisableTorchFunctionSubclass():
        assert param.tolist() == [-10.0] * 3


@needs_native
def test_what_a_failed_read_wrote_is_reported_by_the_next() -> None:
    class Failing(nn.Parameter):
        @property
        def grad(self) -> Tensor:
            if fails:
                raise RuntimeError("no gradient today")
            return torch.ones(3)

    params = [nn.Parameter(torch.zeros(3)), Failing(torch.zeros(3))]
    params[0].grad = torch.ones(3)
    records, active = np.zeros(2, RECORD), np.zeros(2, bool)
    made = make_reader(params, params, records, active)
    assert type(made) is NativeReader
    fails = True
    with pytest.raises(RuntimeError, match="today"):
        made.read(0, 2)
    assert active.tolist() == [True, False]
    fails = False
    assert made.read(0, 1)[2:4] == (True, True)
    assert made.read(0, 1)[2:4] == (False, False)


def test_temporary_gradients_last_until_the_launch_is_over() -> None:
    class Scaled(nn.Parameter):
        @property
        def grad(self) -> Tensor:
            return self.given * 0.5

    count = 200_000
    params = [Scaled(torch.zeros(count)) for _ in range(4)]
    for i, param in enumerate(params):
        param.given = torch.full((count,), i + 1.0)
    sf.StackelbergSGD(params, lr=1.0, backend="cpu").step()
    assert [p.detach().unique().tolist() for p in params] == [[-0.5], [-1.0], [-1.5], [-2.0]]


@needs_native
def test_the_readers_lists_are_its_own() -> None:
    params = [nn.Parameter(torch.zeros(3))]
    records, active = np.zeros(2, RECORD), np.zeros(2, bool)
    made = make_reader(params, params, records, active)
    params.clear()
    assert made.read(0, 1)[0] == [0]
    with pytest.raises(ValueError, match="as many local tensors"):
        NativeReader([torch.ones(1)], [], 0, 0, tensor_abi())


@needs_native
def test_slots_out_of_range_raise() -> None:
    with pytest.raises(IndexError):
        Sides().readers[1].read(0, 7)


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_native)])
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_are_kept_until_what_keeps_them_is_let_go(native: bool, count: int) -> None:
    param = nn.Parameter(torch.zeros(count))
    array = np.ones(count, np.float32)
    memory = weakref.ref(array)
    param.grad = torch.from_numpy(array)
    del array
    args = [param], [param], np.zeros(1, RECORD), np.zeros(1, bool)
    found = (make_reader(*args) if native else PythonReader(*args)).read(0, 1)
    param.grad = None
    assert memory() is not None
    del found
    assert memory() is None


@needs_native
def test_tensors_exchanged_with_others_are_read_anew() -> None:
    sides = Sides()
    torch.utils.swap_tensors(sides.params[0], nn.Parameter(normal((4, 4), 9)))
    assert sides.read()[0] == [0]


@needs_native
def test_a_wrapper_is_left_to_python(capfd: pytest.CaptureFixture[str]) -> None:
    with FakeTensorMode():
        fake = torch.zeros(3)
    assert isinstance(fake, FakeTensor)
    records, active = np.zeros(1, RECORD), np.zeros(1, bool)
    made = make_reader([fake], [fake], records, active)
    assert made.read(0, 1)[0] == [0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cls", [sf.StackelbergAdamW, torch.optim.AdamW])
def test_no_gradient_is_kept_alive(cls: type) -> None:
    """A strong reference would hold the old gradients through the next backward."""
    param = nn.Parameter(normal(3, 1))
    optimizer = cls([param])
    param.grad = normal(3, 2)
    gone = weakref.ref(param.grad)
    optimizer.step()
    param.grad = None
    assert gone() is None


@pytest.mark.parametrize("cls", [sf.StackelbergAdamW, torch.optim.AdamW])
def test_a_parameter_that_reaches_its_optimizer_is_collected_with_it(cls: type) -> None:
    """Native objects must not hide such a cycle from the garbage collector."""

    def build() -> weakref.ref[Any]:
        param = nn.Parameter(normal(3, 1))
        optimizer = cls([param])
        param.grad = normal(3, 2)
        optimizer.step()
        param.optimizer = optimizer
        return weakref.ref(optimizer)

    gone = build()
    gc.collect()
    assert gone() is None
