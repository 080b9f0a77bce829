"""An allocator that fails where it is told to, and calls that have to leave everything as it was when it does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import stackelberg_fused as sf

ALLOCATES = (
    "empty",
    "zeros",
    "ones",
    "clone",
    "_to_copy",
    "full",
    "stack",
    "cat",
    "lift_fresh",
    "new_",
)


class NoMemory(Exception):
    """What the allocator says here."""


class FailingAllocator(TorchDispatchMode):
    """Has the n-th allocation of a tensor fail, counted from 0."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name.startswith(ALLOCATES) or "_like" in name:
            if not self.left:
                self.left = -1
                raise NoMemory
            self.left -= 1
        return func(*args, **(kwargs or {}))


SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"amsgrad": True, "ema_decay": 0.9},
    "8 bits": {
        "state_dtype": "8bit",
        "float32_state": "none",
        "update_every": 2,
        "update_every_grads": "mean",
    },
    "sgd": {"rule": "sgd", "momentum": 0.9},
    "gaps": {"weight_decay": 0.1},
}


def make_params(settings: str) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in ((300,), (7, 9), ())]
    if settings == "gaps":
        tensors = [torch.stack([t, t], -1)[..., 0] for t in tensors]
    return [nn.Parameter(t) for t in tensors]


def make_optimizer(settings: str, params: list[nn.Parameter], **more: Any) -> Any:
    groups = [
        {"params": params[:2], **SETTINGS[settings]},
        {"params": params[2:], "role": "head", "rule": "adamw"},
    ]
    return sf.StackelbergAdamW(groups, lr=0.1, max_grad_norm=1.0, **more)


def _give(p: nn.Parameter, grad: torch.Tensor) -> None:
    """A gradient, in the place of the one before: it may be that of a flat buffer."""
    if p.grad is None:
        p.grad = grad
    else:
        p.grad.copy_(grad)


def step(optimizer: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            _give(p, torch.randn(p.shape, generator=generator))
    optimizer.step()


def values(params: list[nn.Parameter], optimizer: Any = None) -> dict[Any, torch.Tensor]:
    """Parameters, and their state where an optimizer is given."""
    found: dict[Any, torch.Tensor] = {i: p.detach().clone() for i, p in enumerate(params)}
    for i, p in enumerate(params if optimizer is not None else ()):
        for name, value in optimizer.state.get(p, {}).items():
            found[i, name] = torch.as_tensor(value).clone()
    return found


def assert_kept(after: dict[Any, torch.Tensor], before: dict[Any, torch.Tensor], what: str) -> None:
    """What was there is there as it was; state may have been allocated for a step to come."""
    for name, value in before.items():
        assert torch.equal(after[name].nan_to_num(), value.nan_to_num()), f"{what}: {name}"


def assert_same(a: dict[Any, torch.Tensor], b: dict[Any, torch.Tensor], what: str) -> None:
    assert a.keys() == b.keys(), what
    assert_kept(a, b, what)


def try_until_it_succeeds(call: Callable[[], Any], check: Callable[[str], None], what: str) -> int:
    """How often a call failed, an allocation later each time; `check` looks after each failure."""
    for n in range(10_000):
        try:
            with FailingAllocator(n):
                call()
        except NoMemory:
            check(f"{what}: allocation {n}")
        else:
            return n
    raise AssertionError(f"{what}: still fails")


def every_allocation(settings: str, **more: Any) -> int:
    """Fail every allocation of construction, first step, load and addition, and go on; returns the failures."""
    twin_params, params = make_params(settings), make_params(settings)
    twin = make_optimizer(settings, twin_params, **more)
    made: list[Any] = []
    before = values(params)
    failures = try_until_it_succeeds(
        lambda: made.append(make_optimizer(settings, params, **more)),
        lambda what: assert_kept(values(params), before, what),
        f"{settings}: construction",
    )
    (optimizer,) = made

    def tried(call: Callable[[], Any], what: str) -> int:
        now = values(params, optimizer)
        return try_until_it_succeeds(
            call,
            lambda where: assert_kept(values(params, optimizer), now, where),
            f"{settings}: {what}",
        )

    for p, q in zip(params, twin_params, strict=True):
        _give(p, torch.ones_like(p))
        _give(q, torch.ones_like(q))
    failures += tried(optimizer.step, "first step")
    twin.step()
    for seed in range(2):
        step(optimizer, seed)
        step(twin, seed)
    packed = copy.deepcopy(optimizer.state_dict())
    step(optimizer, 7)
    step(twin, 7)
    failures += tried(lambda: optimizer.load_state_dict(packed), "load")
    twin.load_state_dict(copy.deepcopy(packed))
    late = [nn.Parameter(torch.ones(70)) for _ in range(2)]
    failures += tried(lambda: optimizer.add_param_group({"params": [late[0]]}), "add_param_group")
    twin.add_param_group({"params": [late[1]]})
    for seed in range(10, 13):
        step(optimizer, seed)
        step(twin, seed)
    assert_same(
        values([*params, late[0]], optimizer), values([*twin_params, late[1]], twin), settings
    )
    return failures
