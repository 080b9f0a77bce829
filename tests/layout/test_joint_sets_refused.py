"""Joint sets refuse what they cannot hold, before anything is modified."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from backends import chosen
from checks import all_params, assert_same_bits
from torch import nn

import stackelberg_fused as sf

BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: sf.L2Ball(-1), ValueError, "radius must be >= 0 and finite, got -1"),
    (lambda: sf.L2Ball(math.inf), ValueError, "radius must be >= 0 and finite"),
    (lambda: sf.L2Ball("1"), TypeError, "radius must be a number"),
    (lambda: sf.L2Ball(10**400), ValueError, "radius is too large"),
    (lambda: sf.Simplex(0), ValueError, "total must be > 0 and finite"),
    (lambda: sf.Simplex(math.nan), ValueError, "total is NaN"),
    (lambda: _of(sf.L2Ball(1e39)), ValueError, r"group 0 \(body\): .*not in the range of"),
    (lambda: _of(sf.Simplex(1e-60)), ValueError, "not in the range of"),
    (lambda: _of(sf.L2Ball(1), torch.float64), ValueError, r"group 0 .*one device and dtype, got"),
    (lambda: _of(sf.L2Ball(1), differentiable=True), ValueError, "does not go with a constraint"),
]


def _of(constraint: Any, other: torch.dtype = torch.float32, **more: Any) -> Any:
    params = [nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in (torch.float32, other)]
    return sf.StackelbergSGD(params, backend="reference", constraint=constraint, **more)


@pytest.mark.parametrize("make, error, match", BAD)
def test_what_is_refused(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


class _Wrapper(torch.Tensor):
    """A parameter without memory of its own, as of a quantised base model."""

    @staticmethod
    def __new__(cls, size: int) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, (size,), dtype=torch.float32)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch.zeros(args[0].shape)


@pytest.mark.parametrize("backend", ["cpu", "cuda-on-host"])
@pytest.mark.parametrize("kind", ["wrapper", "freed"])
def test_a_ball_needs_the_memory_of_all_of_its_group(backend: str, kind: str) -> None:
    """Also of a frozen parameter, which nothing else would read."""
    instance, _ = chosen(backend)
    moving, frozen = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(3), requires_grad=False)
    other = _Wrapper(3) if kind == "wrapper" else frozen
    ours = sf.StackelbergSGD([moving, other], lr=0.1, backend=instance, flatten=False)
    moving.grad = torch.ones(5)
    ours.step()
    if kind == "freed":
        frozen.untyped_storage().resize_(0)
    ours.step()
    ours.param_groups[0]["constraint"] = sf.L2Ball(1.0)
    before = moving.detach().clone()
    with pytest.raises(TypeError, match=r"parameter 1 of param group 0.*no memory"):
        ours.step()
    assert_same_bits(moving.detach(), before)


def test_a_state_dict_that_is_refused_changes_nothing() -> None:
    ours = _of(None, torch.float64)
    packed = ours.state_dict()
    packed["param_groups"][0].update(constraint=("l2_ball", 1.0), lr=7.0)
    with pytest.raises(ValueError, match="one device and dtype"):
        ours.load_state_dict(packed)
    assert ours.param_groups[0]["lr"] != 7.0
    assert ours.param_groups[0]["constraint"] is None
    ours.step()


def test_an_edit_that_is_refused_changes_nothing() -> None:
    ours = _of(None, torch.float64)
    params = all_params(ours)
    for p in params:
        p.grad = torch.ones_like(p)
    ours.param_groups[0]["constraint"] = sf.Simplex()
    with pytest.raises(ValueError, match="one device and dtype"):
        ours.step()
    assert all(p.eq(0).all() for p in params)


@pytest.mark.parametrize("scheme", [{"master": "stochastic"}, {"state_dtype": "bfloat16"}])
@pytest.mark.parametrize("backend", ["cpu", "cuda-on-host"])
def test_an_edit_to_a_set_that_the_backend_does_not_know_is_refused(
    backend: str, scheme: dict[str, Any]
) -> None:
    """As at construction: the kernel would read numbers of another format past the end of the parameter."""
    dtype = torch.bfloat16 if "master" in scheme else torch.float32
    p = nn.Parameter(torch.linspace(1, 2, 5).to(dtype))
    how = {"backend": chosen(backend)[0], "float32_state": "none", **scheme}
    ours = sf.StackelbergAdamW([p], lr=0.1, **how)
    p.grad = torch.ones_like(p)
    ours.step()
    ours.param_groups[0]["constraint"] = sf.L2Ball(0.5)
    before = p.detach().clone()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"parameter 0 of param group 0.*joint sets"):
            ours.step()
        assert_same_bits(p.detach(), before)
    ours.param_groups[0]["constraint"] = None
    ours.step()


def test_an_edit_to_such_a_set_takes_another_backend_where_any_may_be_taken() -> None:
    p = nn.Parameter(torch.ones(5, dtype=torch.bfloat16))
    ours = sf.StackelbergAdamW([p], lr=0.1)
    p.grad = torch.ones_like(p)
    ours.step()
    ours.param_groups[0]["constraint"] = sf.L2Ball(0.5)
    with pytest.warns(UserWarning, match="stepped by the reference backend"):
        ours.step()
    assert ours.backend == "reference"
    assert float(p.detach().float().norm()) <= 0.5
