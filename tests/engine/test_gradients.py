"""Gathered gradients: read where autograd left them, whatever their address, layout or owner."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import Options, gradient, normal
from checks import compare_gathered
from host_cuda.backend import HostCudaBackend
from torch import Tensor, nn

ADAM = Options("adamw", {"amsgrad": True, "lr": 0.1})
KERNELS = ["cpu", "cuda-on-host"]


@pytest.fixture(params=KERNELS)
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "cpu":
        return "cpu"
    if not HostCudaBackend.status().available:
        pytest.skip(HostCudaBackend.status().reason)
    return HostCudaBackend()


_compare = partial(compare_gathered, ADAM)


def _at_offset(value: Tensor, offset: int) -> Tensor:
    """A view of equal values, `4 * offset` bytes past a 64-byte boundary."""
    room = torch.empty(value.numel() + 32)
    start = (-room.data_ptr() % 64) // 4 + offset
    view = room[start : start + value.numel()].view(value.shape)
    assert view.data_ptr() % 64 == 4 * offset
    return view.copy_(value)


@pytest.mark.parametrize("size", [1, 63, 4096, 4097, 9000])
def test_every_four_byte_offset(size: int, backend: Any) -> None:
    steps = [[_at_offset(gradient(size, i), i)] for i in range(16)]
    _compare([nn.Parameter(normal(size, 1))], steps, backend)


@pytest.mark.parametrize("offset", range(4))
def test_misaligned_parameters(offset: int, backend: Any) -> None:
    param = nn.Parameter(_at_offset(normal(5000, 1), offset))
    address = param.data_ptr()
    _compare([param], [[gradient(5000, i).clone()] for i in range(3)], backend)
    assert param.data_ptr() == address  # not alone in its storage: stays


def test_bucket_views() -> None:
    """Return gradients as of DDP's gradient_as_bucket_view: consecutive views of one buffer, the same at every step."""
    sizes = (3, 7, 4096, 1, 5, 4097)
    bucket = torch.zeros(sum(sizes))
    views = list(bucket.split(list(sizes)))
    assert {v.data_ptr() % 16 for v in views} >= {0, 12}

    def steps() -> Iterator[list[Tensor]]:
        for step in range(4):
            bucket.copy_(gradient(sum(sizes), step))
            yield views

    _compare([nn.Parameter(normal(n, i)) for i, n in enumerate(sizes)], steps())


def test_none_gradients_skip_a_parameter_and_its_step_count() -> None:
    params = [nn.Parameter(normal(20, i)) for i in range(3)]
    patterns = [(1, 0, 1), (0, 0, 1), (1, 0, 0), (0, 0, 0), (1, 0, 1)]
    steps = [
        [gradient(20, 10 * s + i).clone() if on else None for i, on in enumerate(pattern)]
        for s, pattern in enumerate(patterns)
    ]
    optimizer = _compare(params, steps)
    assert [float(optimizer.state[p]["step"]) for p in (params[0], params[2])] == [3, 3]
    assert params[1] not in optimizer.state or not optimizer.state[params[1]]
    assert optimizer.launches == 4  # none where no parameter has a gradient


def _channels_last(shape: tuple[int, ...], seed: int) -> Tensor:
    return normal(shape, seed).contiguous(memory_format=torch.channels_last)


LAYOUTS: dict[str, Callable[[int], Tensor]] = {
    "contiguous": lambda seed: normal((4, 3, 8, 8), seed),
    "channels_last": lambda seed: _channels_last((4, 3, 8, 8), seed),
    "transposed": lambda seed: normal((8, 8, 3, 4), seed).permute(3, 2, 1, 0),
    "gaps": lambda seed: normal((4, 3, 8, 16), seed)[..., ::2],
    "expanded": lambda seed: normal((4, 1, 8, 1), seed).expand(4, 3, 8, 8),
    "slice": lambda seed: normal((6, 3, 8, 8), seed)[1:5],
}


@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("of_param", [name for name in LAYOUTS if name != "expanded"])
def test_layouts(of_param: str, of_gradient: str, backend: Any) -> None:
    """torch's own fused CPU kernel silently updates the wrong elements where the two differ."""
    param = nn.Parameter(LAYOUTS[of_param](1))
    strides = param.stride()
    _compare([param], [[LAYOUTS[of_gradient](2 + i)] for i in range(3)], backend)
    assert param.stride() == strides


@pytest.mark.parametrize("flatten", [True, False])
def test_gaps_are_left_alone(flatten: bool, backend: Any) -> None:
    base = torch.full((40, 20), torch.nan)
    params = [
        nn.Parameter(base[1:39, 1:7]),
        nn.Parameter(base[:, 9]),
        nn.Parameter(base[5:20, 10:20:3]),
    ]
    with torch.no_grad():
        for i, p in enumerate(params):
            p.copy_(normal(tuple(p.shape), i))
    holes = base.isnan()
    steps = [[gradient(tuple(p.shape), s).clone() for p in params] for s in range(3)]
    _compare(params, steps, backend, flatten=flatten)
    assert torch.equal(base.isnan(), holes)
    assert all(p.data_ptr() >= base.data_ptr() for p in params)


def test_disjoint_interleaved_parameters_of_one_storage(backend: Any) -> None:
    base = normal((50, 4), 1)
    params = [nn.Parameter(base[:, i]) for i in range(4)]
    _compare(
        params, [[gradient(50, 4 * s + i).clone() for i in range(4)] for s in range(3)], backend
    )
    assert torch.equal(base, torch.stack([p.detach() for p in params], dim=1))


def test_a_changing_layout_is_followed_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "stackelberg_fused")
    kinds = ["contiguous", "channels_last", "channels_last", "contiguous", "gaps", "contiguous"]
    param = nn.Parameter(normal((4, 3, 8, 8), 0))
    _compare([param], [[LAYOUTS[kind](i)] for i, kind in enumerate(kinds[:3])])
    messages = [r.message for r in caplog.records if "strides" in r.message]
    assert len(messages) == 1
    assert "parameter 0 of param group 0 (body)" in messages[0]
    optimizer = _compare([param], [[LAYOUTS[kind](i)] for i, kind in enumerate(kinds)])
    records = optimizer._engine.units[0].table.records
    assert records["grad"][0] == param.grad.data_ptr()  # read where it is again, not from a copy


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (3, 0), (1, 5), (5, 1)])
def test_small_shapes_also_last_in_a_group(shape: tuple[int, ...], backend: Any) -> None:
    params = [nn.Parameter(normal(5, 1)), nn.Parameter(normal(shape, 2))]
    _compare(params, [[normal(5, s), normal(shape, s + 1)] for s in range(3)], backend)
    _compare(params[::-1], [[normal(shape, s + 1), normal(5, s)] for s in range(3)], backend)
    if shape:
        turned = normal(tuple(reversed(shape)), 3).permute(*reversed(range(len(shape))))
        _compare(params, [[normal(5, 0), turned]], backend)


def test_the_negative_bit_of_a_view_is_resolved() -> None:
    grad = torch.complex(normal(1, 1), normal(1, 2)).conj().imag
    assert grad.is_neg()
    _compare([nn.Parameter(normal(1, 3))], [[grad]])


def test_the_records_count_their_changes() -> None:
    """The copy on a GPU is uploaded again when this number changes."""
    param = nn.Parameter(normal(5, 1))
    optimizer = ADAM.ours([param], backend="cpu")
    versions = []
    kept = [gradient(5, i).clone() for i in range(2)]
    for grad in (kept[0], kept[0], kept[1], kept[1], None, None):
        param.grad = grad
        optimizer.step()
        versions.append(optimizer._engine.units[0].table.version)
    same = [now == then for then, now in pairwise(versions)]
    assert same == [True, False, True, False, True]


def test_a_parameter_with_the_negative_bit() -> None:
    param = nn.Parameter(torch.tensor(1 + 2j).conj().imag)
    assert param.is_neg()
    _compare([param], [[torch.tensor(float(i + 1))] for i in range(3)])


def test_a_parameter_without_memory_is_refused() -> None:
    class Wrapper(Tensor):
        @staticmethod
        def __new__(cls, inner: Tensor) -> Any:
            return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner: Tensor) -> None:
            self.inner = inner

        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.detach.default:
                return cls(args[0].inner)
            raise NotImplementedError(func)

    param = nn.Parameter(Wrapper(normal(3, 1)))
    with pytest.raises(ValueError, match=r"parameter 0 of param group 0 .*without memory"):
        ADAM.ours([param], backend="cpu", flatten=False)
