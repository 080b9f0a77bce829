"""Memory exchanged under tensors that stay the same objects: state, step counts, flat gradients go on as torch's do."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
import torch.multiprocessing  # registers how tensors are pickled for another process
from backends import by_backend, chosen
from cases import Options, gradient, kernel_options, normal, step
from checks import Snapshot, all_params, assert_agree, assert_same_optimizers
from flat_buffers import assert_attached, buffers_of, fill, flat_optimizer
from named_schemes import NAMED, Named
from torch import Tensor, nn

import stackelberg_fused as sf

SHAPES = [(3, 5), (300,), (), (0,)]


def _share(tensor: Tensor) -> None:
    tensor.share_memory_()


def _send(tensor: Tensor) -> None:
    """As a queue or a spawned process does to the sender's tensor."""
    ForkingPickler.dumps(tensor)


def _rebind(tensor: Tensor) -> None:
    tensor.data = tensor.data.clone()


def _set(tensor: Tensor) -> None:
    tensor.set_(tensor.clone())


def _swap(tensor: Tensor) -> None:
    torch.utils.swap_tensors(tensor, tensor.clone())


def _offload(tensor: Tensor) -> None:
    """Free the memory and take new one; storages of arenas and of arrays refuse."""
    kept, storage = tensor.clone(), tensor.untyped_storage()
    size = storage.nbytes()
    try:
        storage.resize_(0)
    except RuntimeError:  # "storage that is not resizable"
        return
    elsewhere = torch.empty(1000)  # the old memory is not simply taken again
    storage.resize_(size)
    tensor.copy_(kept)
    del elsewhere


EXCHANGES = (_share, _send, _rebind, _set, _swap, _offload)
by_exchange = pytest.mark.parametrize("exchange", EXCHANGES)


def _params(dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[nn.Parameter]:
    return [nn.Parameter(normal(s, i).to(device, dtype)) for i, s in enumerate(SHAPES)]


def _exchange_state(optimizer: Any, exchange: Callable[[Tensor], None]) -> None:
    for p in all_params(optimizer):
        for value in optimizer.state[p].values():
            exchange(value)


def _stepped(optimizer: Any, exchange: Callable[[Tensor], None] | None) -> Any:
    for seed in range(7):
        step(optimizer, seed=seed)
        if exchange is not None and seed in (0, 2, 3):
            _exchange_state(optimizer, exchange)
    return optimizer


@by_backend
@by_exchange
def test_state_and_counts(exchange: Callable[[Tensor], None], backend: str) -> None:
    instance, device = chosen(backend)
    more = {"lr": 0.1, "amsgrad": True, "ema_decay": 0.5, "update_every": 2}
    sides = [
        sf.StackelbergAdamW(
            _params(device=device), backend=instance, update_every_grads="mean", **more
        )
        for _ in range(2)
    ]
    exchanged, plain = _stepped(sides[0], exchange), _stepped(sides[1], None)
    assert_same_optimizers(exchanged, plain)
    for a, b in zip(all_params(exchanged), all_params(plain), strict=True):
        assert {"step", "waited", "grad_sum", "ema"} <= exchanged.state[a].keys()
        assert exchanged.state[a]["waited"] == plain.state[b]["waited"]


@by_exchange
@pytest.mark.parametrize("options", kernel_options()[::3], ids=str)
def test_as_torch(options: Options, exchange: Callable[[Tensor], None]) -> None:
    ours, torchs = options.ours(_params(), lr=0.01), options.torchs(_params(), lr=0.01)
    assert_agree(_stepped(ours, exchange), _stepped(torchs, exchange))
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        assert ours.state[p]["step"] == torchs.state[q].get("step", 7)  # torch's SGD counts nothing


@by_exchange
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("named", NAMED.values(), ids=NAMED)
def test_stored_in_fewer_bits(
    named: Named, backend: str, exchange: Callable[[Tensor], None]
) -> None:
    sides = [
        sf.StackelbergAdamW(_params(named.scheme.param), backend=backend, **named.settings)
        for _ in range(2)
    ]
    assert_same_optimizers(_stepped(sides[0], exchange), _stepped(sides[1], None))


@by_backend
@by_exchange
def test_where_the_device_counts(exchange: Callable[[Tensor], None], backend: str) -> None:
    instance, device = chosen(backend)
    sides = [
        sf.StackelbergAdam([{"params": _params(device=device), "capturable": True}], backend=b)
        for b in (instance, "reference" if backend == "reference" else instance)
    ]
    assert_same_optimizers(_stepped(sides[0], exchange), _stepped(sides[1], None))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_count_edited_where_it_lies_now(backend: str) -> None:
    sides = [sf.StackelbergAdam(_params(), backend=backend) for _ in range(2)]
    for optimizer, exchange in zip(sides, (_share, None), strict=True):
        step(optimizer)
        if exchange is not None:
            _exchange_state(optimizer, exchange)
        for p in all_params(optimizer):
            optimizer.state[p]["step"].fill_(40)
        step(optimizer, seed=1)
    assert_same_optimizers(*sides)
    assert {float(e["step"]) for e in sides[0].state.values()} == {41.0}


def test_moments_stay_where_another_process_sees_them() -> None:
    optimizer = _stepped(sf.StackelbergAdam(_params()), _share)
    entries = [optimizer.state[p] for p in all_params(optimizer) if p.numel()]
    assert all(entry["exp_avg"].is_shared() for entry in entries)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("left", [0, 8])
def test_state_whose_memory_is_gone_is_refused(backend: str, left: int) -> None:
    params = _params()
    optimizer = sf.StackelbergAdam([{"params": params[:2]}], backend=backend)
    step(optimizer)
    optimizer.state[params[1]]["exp_avg"].data = torch.ones(300)
    before = Snapshot(optimizer)
    storage = optimizer.state[params[1]]["exp_avg"].untyped_storage()
    storage.resize_(left)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"parameter 1 .*exp_avg has no memory"):
            optimizer.step()
    storage.resize_(1200)
    optimizer.state[params[1]]["exp_avg"].fill_(1.0)
    before.assert_unchanged()
    optimizer.step()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("left", [0, 8])
def test_a_parameter_whose_memory_is_gone_is_refused(backend: str, left: int) -> None:
    params = _params()[:2]
    optimizer = sf.StackelbergAdam(params, backend=backend, flatten=False)
    step(optimizer)
    params[1].untyped_storage().resize_(left)
    with pytest.raises(TypeError, match=r"parameter 1 .*no memory to update"):
        optimizer.step()
    params[1].untyped_storage().resize_(1200)
    optimizer.step()


def _exchanged_gradients(exchange: Callable[[Tensor], None], whose: str) -> list[Any]:
    """Two optimizers after the same steps, of which one had the memory of flat gradients exchanged."""
    sides = [flat_optimizer(), flat_optimizer()]
    for optimizer, is_exchanged in zip(sides, (True, False), strict=True):
        for number in range(4):
            fill(optimizer, number)
            if is_exchanged and number in (1, 2):
                views = [p.grad for p in all_params(optimizer)]
                for tensor in buffers_of(optimizer) if whose == "buffers" else views:
                    exchange(tensor)
                buffers_of(optimizer)  # asking for them brings gradients back into them
            if whose == "buffers":  # autograd and whoever reduces have to mean the same memory
                for buffer in buffers_of(optimizer):
                    buffer.mul_(0.5)
            optimizer.step()
            optimizer.zero_grad()
            assert_attached(optimizer, 0.0)
    return sides


@pytest.mark.filterwarnings("ignore:.*not in the flat buffer")
@pytest.mark.parametrize("whose", ["buffers", "views"])
@pytest.mark.parametrize("exchange", [_share, _send, _rebind, _set])
def test_flat_gradients(exchange: Callable[[Tensor], None], whose: str) -> None:
    assert_same_optimizers(*_exchanged_gradients(exchange, whose))


def test_a_model_that_is_shared_keeps_its_flat_gradients() -> None:
    """`model.share_memory()` exchanges the memory of gradients too."""
    layer = nn.Linear(4, 3)
    optimizer = sf.StackelbergSGD(layer.parameters(), lr=1.0, grads="flat")
    layer.share_memory()
    for p in layer.parameters():
        p.grad.fill_(1.0)
    before = layer.weight.detach().clone()
    optimizer.step(zero_grad=True)
    assert torch.equal(layer.weight, before - 1.0)
    assert_attached(optimizer, 0.0)
    assert all(buffer.is_shared() for buffer in buffers_of(optimizer))


def test_gradients_exchanged_and_cleared_do_not_pile_up() -> None:
    param = nn.Parameter(torch.zeros(5))
    optimizer = sf.StackelbergSGD([param], lr=1.0, grads="flat")
    param.grad.data = gradient(5, 1).clone()
    optimizer.zero_grad()
    assert_attached(optimizer, 0.0)
    param.sum().backward()
    assert_attached(optimizer, 1.0)
