"""Parameters without memory of their own: frozen ones are left alone, wrappers are trained as torch trains them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import OURS, TORCHS, Options, gradient, kernel_options, normal
from checks import assert_same_bits, assert_same_state
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from wrappers import Scaled, unwrapped, wrapped

import stackelberg_fused as sf

SHAPES = [(3, 5), (7,), ()]
pytestmark = pytest.mark.filterwarnings("ignore:.*stepped by the reference backend")


def _wrapped(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [wrapped(normal(s, i).to(dtype)) for i, s in enumerate(SHAPES)]


def _step(optimizer: Any, params: list[nn.Parameter], number: int, **how: Any) -> None:
    for k, p in enumerate(params):
        p.grad = gradient(tuple(p.shape), 97 * number + k, p.dtype).clone()
    optimizer.step(**how)


def _assert_same(mine: Any, ours: list[nn.Parameter], theirs: Any, torchs: list[Any]) -> None:
    for p, q in zip(ours, torchs, strict=True):
        assert_same_bits(unwrapped(p), unwrapped(q))
        assert_same_state(mine.state[p], theirs.state[q])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("options", [o for o in kernel_options() if "cautious" not in o.settings])
def test_trained_wrappers_move_as_in_torch(options: Options, dtype: torch.dtype) -> None:
    ours, torchs = _wrapped(dtype), _wrapped(dtype)
    mine, theirs = options.ours(ours, lr=0.01), options.torchs(torchs, lr=0.01)
    for number in range(3):
        _step(mine, ours, number)
        _step(theirs, torchs, number)
    _assert_same(mine, ours, theirs, torchs)
    assert all(type(p) is Scaled for p in ours)
    assert not torch.equal(unwrapped(ours[0]), unwrapped(_wrapped(dtype)[0]))
    assert mine.backend == "reference"


def test_their_gradients_are_autograds() -> None:
    sides = [(cls, _wrapped()) for cls in (sf.StackelbergAdamW, torch.optim.AdamW)]
    made = []
    for cls, params in sides:
        optimizer = cls(params, lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            sum((p * p).sum() for p in params).backward()
            optimizer.step()
        made.append((optimizer, params))
    _assert_same(*made[0], *made[1])


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_beside_plain_ones(backend: str) -> None:
    sides = []
    for cls, more in ((sf.StackelbergSGD, {"backend": backend}), (torch.optim.SGD, {})):
        params = [*_wrapped(), nn.Parameter(normal(9, 1))]
        optimizer = cls(params, lr=0.5, momentum=0.5, **more)
        for number in range(3):
            _step(optimizer, params, number)
        sides.append((optimizer, params))
    (mine, ours), (_, torchs) = sides
    assert mine.backend == ("reference" if backend == "reference" else "reference+cpu")
    for p, q in zip(ours, torchs, strict=True):
        torch.testing.assert_close(unwrapped(p), unwrapped(q))


SETTINGS: dict[str, dict[str, Any]] = {
    "average": {"ema_decay": 0.5},
    "turns": {"update_every": 2, "update_every_grads": "mean"},
    "box": {"constraint": sf.Box(-0.5, 0.5)},
    "clipped": {"max_grad_norm": 0.1},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_ours(name: str) -> None:
    """The same weights as plain parameters get from the same backend."""
    ours, plain = _wrapped(), [nn.Parameter(unwrapped(p).clone()) for p in _wrapped()]
    optimizers = [
        sf.StackelbergAdamW(params, lr=0.1, backend="reference", **SETTINGS[name])
        for params in (ours, plain)
    ]
    for number in range(4):
        for optimizer, params in zip(optimizers, (ours, plain), strict=True):
            _step(optimizer, params, number)
    _assert_same(optimizers[0], ours, optimizers[1], plain)


def test_flat_gradients_are_refused() -> None:
    """A buffer is a plain tensor, into which autograd would add the gradients of all that are inside."""
    with pytest.raises(ValueError, match=r"parameter 0 of param group 0 .*grads='flat'"):
        sf.StackelbergAdamW(_wrapped(), grads="flat")


@pytest.mark.parametrize("rule", OURS)
def test_state_is_of_the_kind_that_torchs_is_of(rule: str) -> None:
    """Two tensors in one: operations on a plain buffer would be made for the first, and again for the second."""
    sides = []
    for cls in (OURS[rule], TORCHS[rule]):
        pair = TwoTensor(normal(5, 1), normal(5, 2))
        param = nn.Parameter(pair)
        optimizer = cls([param], lr=0.1, **({"momentum": 0.9} if rule == "sgd" else {}))
        for number in range(3):
            optimizer.zero_grad()
            (param * (number + 1)).sum().backward()
            optimizer.step()
            if number == 1:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        sides.append((param, optimizer.state[param]))
    (ours, mine), (torchs, theirs) = sides
    for p, q in zip((ours.a, ours.b), (torchs.a, torchs.b), strict=True):
        torch.testing.assert_close(p, q)
    for name in theirs:
        assert type(mine[name]) is type(theirs[name])


def test_a_state_dict_goes_on() -> None:
    ours, again = _wrapped(), _wrapped()
    optimizer = sf.StackelbergAdam(ours, lr=0.1)
    _step(optimizer, ours, 0)
    loaded = sf.StackelbergAdam(again, lr=0.1)
    _step(loaded, again, 0)
    loaded.load_state_dict(optimizer.state_dict())
    for number in (1, 2):
        _step(optimizer, ours, number)
        _step(loaded, again, number)
    _assert_same(optimizer, ours, loaded, again)


def _fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(4)


FROZEN: dict[str, Callable[[], Tensor]] = {
    "meta": lambda: torch.ones(4, device="meta"),
    "fake": _fake,
    "wrapper": lambda: Scaled(torch.ones(4)),
    "sparse": lambda: torch.ones(4).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "expanded": lambda: torch.ones(1).expand(4),
}


def _frozen(name: str) -> list[nn.Parameter]:
    return [nn.Parameter(FROZEN[name](), requires_grad=False) for _ in range(2)]


@pytest.mark.filterwarnings("error", "ignore:.*nested tensors is in prototype")
@pytest.mark.parametrize("rule", OURS)
@pytest.mark.parametrize("grads", ["gather", "flat"])
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_ones_are_left_alone(name: str, grads: str, rule: str) -> None:
    ours, torchs = (nn.Parameter(normal(5, 1)) for _ in range(2))
    mine = OURS[rule]([*_frozen(name), ours], lr=0.1, grads=grads, backend="cpu")
    theirs = TORCHS[rule]([*_frozen(name), torchs], lr=0.1)
    for number in range(2):
        for optimizer, param in ((mine, ours), (theirs, torchs)):
            param.grad = torch.zeros(5) if param.grad is None else param.grad
            param.grad.copy_(gradient(5, number))
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours, torchs)
    assert mine.backend == "cpu"
    assert mine.launches == 2
    mine.load_state_dict(mine.state_dict())
    mine.add_param_group({"params": _frozen(name)})


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
@pytest.mark.parametrize("name", FROZEN)
def test_nothing_but_frozen_ones(name: str) -> None:
    optimizer = sf.StackelbergAdamW(_frozen(name))
    optimizer.step()
    optimizer.zero_grad()
    assert (optimizer.launches, len(optimizer.state)) == (0, 0)


def test_a_wrapper_that_is_trained_later() -> None:
    params = [wrapped(normal(4, i), requires_grad=False) for i in range(2)]
    plain = nn.Parameter(normal(4, 3))
    optimizer = sf.StackelbergSGD([*params, plain], lr=1.0)
    _step(optimizer, [plain], 0)
    before = [unwrapped(p).clone() for p in params]
    params[0].requires_grad_()
    _step(optimizer, [params[0]], 1)
    assert_same_bits(unwrapped(params[0]), before[0] - params[0].grad)
    assert_same_bits(unwrapped(params[1]), before[1])


@pytest.mark.parametrize("name", ["meta", "fake"])
def test_one_without_values_that_is_trained_later(name: str) -> None:
    frozen, plain = _frozen(name), nn.Parameter(normal(4, 3))
    optimizer = sf.StackelbergSGD([*frozen, plain], lr=1.0)
    frozen[1].requires_grad_()
    frozen[1].grad = torch.ones_like(frozen[1])
    plain.grad, before = torch.ones(4), plain.detach().clone()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"parameter 1 .*no memory to update"):
            optimizer.step()
    assert_same_bits(plain, before)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("flatten", [True, False])
def test_elements_in_one_place_that_are_trained_later(flatten: bool, backend: str) -> None:
    frozen, plain = _frozen("expanded"), nn.Parameter(normal(4, 3))
    optimizer = sf.StackelbergSGD([plain, *frozen], lr=1.0, flatten=flatten, backend=backend)
    frozen[1].grad = torch.ones(4)
    plain.grad, before = torch.ones(4), plain.detach().clone()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"parameter 2 .*share one memory location"):
            optimizer.step()
    assert_same_bits(plain, before)
    frozen[1].grad = None
    optimizer.step()
    assert_same_bits(plain, before - 1)


def test_a_ball_takes_no_elements_in_one_place() -> None:
    params = [nn.Parameter(normal(4, 3)), *_frozen("expanded")]
    with pytest.raises(ValueError, match=r"parameter 1 .*share one memory location"):
        sf.StackelbergSGD(params, lr=1.0, constraint=sf.L2Ball(0.5))


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "meta": (lambda: FROZEN["meta"](), {}, "parameter 1 .*meta device, it has no memory"),
    "fake": (lambda: FROZEN["fake"](), {}, "parameter 1 .*fake tensor, it has no memory"),
    "nested": (lambda: FROZEN["nested"](), {}, "parameter 1 .*nested parameters are not supported"),
    "cpu": (lambda: FROZEN["wrapper"](), {"backend": "cpu"}, "parameter 1 .*backend='reference'"),
    "state": (lambda: FROZEN["wrapper"](), {"state_dtype": "8bit"}, "parameter 1 .*a Scaled"),
    "master": (lambda: FROZEN["wrapper"](), {"master": "kahan"}, "parameter 1 .*a Scaled"),
    "ball": (lambda: FROZEN["wrapper"](), {"constraint": sf.L2Ball(1.0)}, "parameter 1 .*Scaled"),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_before_anything_moves(name: str) -> None:
    make, settings, message = REFUSED[name]
    plain = nn.Parameter(normal(4, 1))
    address = plain.data_ptr()
    with pytest.raises((ValueError, TypeError), match=message):
        sf.StackelbergAdamW([plain, nn.Parameter(make())], **settings)
    assert plain.data_ptr() == address


def test_state_that_is_a_wrapper_is_copied() -> None:
    sides = []
    for state in (Scaled, torch.clone):
        param = nn.Parameter(normal(4, 1))
        optimizer = sf.StackelbergAdamW([param], lr=0.1)
        _step(optimizer, [param], 0)
        optimizer.state[param]["exp_avg"] = state(torch.ones(4))
        if state is torch.clone:
            optimizer.state[param]["exp_avg"] *= Scaled.SCALE
        _step(optimizer, [param], 1)
        sides.append(param)
    assert_same_bits(*sides)
