"""`replace`: a parameter of other rows takes the place and the state of another, as surgery by hand would have it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backends import by_backend, by_host_backend, chosen
from cases import normal, step
from checks import all_params, assert_agree, assert_same_bits, assert_same_optimizers
from failing_allocator import ALLOCATES
from replaced_rows import (
    ADAM,
    NARROW,
    ROWS,
    WIDE,
    WIDTH,
    by_kind,
    by_rows,
    new_weights,
    optimizer_of,
    replace,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import stackelberg_fused as sf
from stackelberg_fused.engine.state_conversion import decoded

BEGIN_WITH_WEIGHTS = ("ema", "master")


def _by_hand(optimizer: Any, weights: Tensor, rows: list[int] = ROWS) -> dict[str, Any]:
    """The state dict of an optimizer whose first parameter was replaced."""
    packed = copy.deepcopy(optimizer.state_dict())
    for name, value in packed["state"].get(0, {}).items():
        if isinstance(value, Tensor) and value.dim():
            begins = name in BEGIN_WITH_WEIGHTS
            begin = weights if begins else value.new_zeros((len(rows), *value.shape[1:]))
            packed["state"][0][name] = by_rows(value, begin, rows)
    return packed


@by_kind
@by_backend
def test_as_a_state_dict_that_was_cut_by_hand(backend: str, kind: str) -> None:
    """The same bits in parameters and state, at once and over steps that follow."""
    ours = optimizer_of(kind, backend)
    for number in range(3):
        step(ours, seed=number)
    weights = new_weights(all_params(ours)[0])
    cut = _by_hand(ours, weights)
    old, new = all_params(ours)[0], nn.Parameter(weights.clone())
    ours.replace(old, new, torch.tensor(ROWS))
    twin = optimizer_of(kind, backend, weights)
    with torch.no_grad():
        for p, q in zip(all_params(twin)[1:], all_params(ours)[1:], strict=True):
            p.copy_(q)
    twin.load_state_dict(cut)
    assert all_params(ours)[0] is new
    assert old not in ours.state
    assert_same_optimizers(ours, twin)
    for number in range(3, 6):
        step(ours, twin, seed=number)
    assert_same_optimizers(ours, twin)


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that is allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.__name__
        allocates = name.startswith(ALLOCATES) or "_like" in name
        if isinstance(made, Tensor) and allocates and not made.is_meta:
            self.elements = max(self.elements, made.numel())
        return made


@pytest.mark.parametrize("more", [{}, {"master": "fp32", "state_dtype": "8bit"}])
def test_other_parameters_are_not_copied(more: dict[str, Any]) -> None:
    params = [nn.Parameter(torch.ones(n, 100, dtype=NARROW)) for n in (5000, 7)]
    ours = ADAM(params, lr=0.1, backend="cpu", ema_decay=0.9, **more)
    step(ours)
    entry = ours.state[params[0]]
    places = {n: v.data_ptr() for n, v in entry.items() if v.dim()}
    with _Largest() as found:
        replace(ours, [6, -1], index=1)
    assert 200 <= found.elements < 1000
    assert {n: v.data_ptr() for n, v in entry.items() if v.dim()} == places
    step(ours)


class _Surgery:
    """What codes of Gaussian splatting do to the state of `torch.optim.Adam`."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def keep_and_add(self, index: int, kept: Tensor, added: Tensor) -> None:
        """Keep rows of a parameter, and add others, whose moments are zeros."""
        group = self.optimizer.param_groups[index]
        old = group["params"][0]
        entry = self.optimizer.state.pop(old)
        group["params"][0] = new = nn.Parameter(torch.cat([old.detach()[kept], added]))
        for name in ("exp_avg", "exp_avg_sq"):
            entry[name] = torch.cat([entry[name][kept], torch.zeros_like(added)])
        self.optimizer.state[new] = entry


@by_backend
def test_grown_and_shrunk_beside_torch(backend: str) -> None:
    instance, device = chosen(backend)
    shapes = {"positions": (7, 2), "colours": (7, 3, 4), "opacities": (7,)}

    def groups() -> list[dict[str, Any]]:
        params = {
            n: nn.Parameter(normal(s, i).to(device)) for i, (n, s) in enumerate(shapes.items())
        }
        return [
            {"params": [p], "lr": 0.01 * 4**i, "name": n} for i, (n, p) in enumerate(params.items())
        ]

    ours = sf.StackelbergAdam(groups(), lr=0.1, eps=1e-15, backend=instance)
    theirs = torch.optim.Adam(groups(), lr=0.1, eps=1e-15)
    surgery = _Surgery(theirs)
    for number in range(6):
        step(ours, theirs, seed=number)
        count = len(all_params(ours)[0])
        kept = torch.arange(count)[torch.arange(count) % 3 != number % 3]
        for index, group in enumerate(ours.param_groups):
            old = group["params"][0]
            added = normal((number, *old.shape[1:]), number).to(device)
            surgery.keep_and_add(index, kept, added)
            rows = torch.cat([kept, torch.full((number,), -1)])
            ours.replace(old, nn.Parameter(torch.cat([old.detach()[kept], added])), rows)
        assert_agree(ours, theirs)
    step(ours, theirs, seed=9)
    assert_agree(ours, theirs)
    assert [len(p) for p in all_params(ours)] == [len(p) for p in all_params(theirs)]
    assert float(ours.state[all_params(ours)[0]]["step"]) == 7.0


@pytest.mark.parametrize(
    "rows", [None, [], [-1, -1], [5, 4, 3, 2, 1, 0], (0,), torch.tensor([2, 2], dtype=torch.int32)]
)
@by_host_backend
def test_rows_of_any_number(backend: str, rows: Any) -> None:
    ours = optimizer_of("state of 8 bits", backend)
    step(ours)
    old = all_params(ours)[0]
    where = list(range(6)) if rows is None else [int(row) for row in rows]
    cut = _by_hand(ours, weights := new_weights(old, where), where)
    ours.replace(old, new := nn.Parameter(weights), rows)
    for name, value in cut["state"][0].items():
        if value.dim():
            assert_same_bits(ours.state[new][name], value, name)
    step(ours, seed=1)
    assert new.isfinite().all()


def test_all_rows_go_and_come_again() -> None:
    ours = optimizer_of("Adam")
    step(ours)
    empty = replace(ours, [])
    step(ours)
    assert ours.state[empty]["exp_avg"].shape == (0, WIDTH)
    again = replace(ours, [-1, -1])
    step(ours)
    assert float(ours.state[again]["step"]) == 3.0


@by_host_backend
@pytest.mark.parametrize("dtype", [WIDE, NARROW])
def test_blocks_that_hold_several_rows_are_encoded_again(backend: str, dtype: torch.dtype) -> None:
    """As a state dict of float32 moments is, when it is loaded."""
    instance, _ = chosen(backend)

    def make(size: int) -> Any:
        params = [nn.Parameter(normal(size, 1).to(dtype))]
        return ADAM(params, lr=0.1, backend=instance, state_dtype="8bit", float32_state="none")

    ours = make(300)
    for number in range(2):
        step(ours, seed=number)
    wide = ADAM([nn.Parameter(all_params(ours)[0].detach().float())], lr=0.1, backend="cpu")
    wide.load_state_dict(ours.state_dict())
    rows = [*range(299, 100, -3), -1]
    cut = _by_hand(wide, torch.zeros(len(rows)), rows)
    new = replace(ours, rows)
    twin = make(len(rows))
    with torch.no_grad():
        all_params(twin)[0].copy_(new)
    twin.load_state_dict(cut)
    assert_same_optimizers(ours, twin)


def _in_float32(entry: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of an entry, with moments of 8 bits decoded."""
    found = {n: v for n, v in entry.items() if v.dim() and not n.endswith(("_code", "_scale"))}
    for name in (n for n in entry if n.endswith("_code")):
        moment = name.removesuffix("_code")
        found[moment] = decoded(moment, entry[name], entry[f"{moment}_scale"])
    return found


def _turned(weights: Tensor, is_turned: bool) -> nn.Parameter:
    """A parameter whose columns lie side by side, or whose rows do."""
    return nn.Parameter(weights.t().contiguous().t() if is_turned else weights.clone())


@pytest.mark.parametrize("rows", [None, ROWS])
@pytest.mark.parametrize("settings", [{}, {"state_dtype": "8bit"}, {"ema_decay": 0.5}])
@pytest.mark.parametrize("turned", [(False, True), (True, False), (True, True)])
def test_state_lies_as_its_parameter_does(
    turned: tuple[bool, bool], settings: dict[str, Any], rows: list[int] | None
) -> None:
    ours = ADAM([_turned(normal((6, WIDTH), 1), turned[0])], lr=0.1, backend="cpu", **settings)
    step(ours)
    old = all_params(ours)[0]
    before = _in_float32(ours.state[old])
    where = [*range(6)] if rows is None else rows
    new = _turned(new_weights(old, where), turned[1])
    ours.replace(old, new, rows)
    for name, found in _in_float32(ours.state[new]).items():
        begin = new.detach() if name == "ema" else torch.zeros_like(new)
        expected = by_rows(before[name], begin, where)
        is_rounded = "state_dtype" in settings and turned != (False, False)
        most = 0.1 * float(expected.abs().max()) if is_rounded else 0.0
        torch.testing.assert_close(found, expected, atol=most, rtol=0.0)
        assert found.stride() == new.stride()
    step(ours)


@pytest.mark.parametrize("kind", ["kahan", "split16", "split8", "float32 master"])
@by_host_backend
def test_a_weight_that_was_changed_counts(backend: str, kind: str) -> None:
    """What lies beside a weight belongs to that very weight."""
    ours = optimizer_of(kind, backend)
    for number in range(3):
        step(ours, seed=number)
    old = all_params(ours)[0]
    beside = next(n for n in ours.state[old] if n in ("kahan_comp", "remainder", "master"))
    held = ours.state[old][beside].clone()
    weights = old.detach().clone()
    weights[0, ::2] += 1.0
    ours.replace(old, new := nn.Parameter(weights))
    expected = held.clone()
    expected[0, ::2] = weights[0, ::2] if beside == "master" else 0
    assert_same_bits(ours.state[new][beside], expected)
    with torch.no_grad():
        new.grad = torch.zeros_like(new)
        for group in ours.param_groups:
            group["lr"] = 0.0
    ours.step()
    assert_same_bits(new[0, ::2], weights[0, ::2])


def test_a_parameter_in_its_own_place_gets_other_rows_of_state() -> None:
    ours = optimizer_of("Adam")
    step(ours)
    param = all_params(ours)[0]
    before = ours.state[param]["exp_avg"].clone()
    ours.replace(param, param, [0, 1, -1, 3, 4, 5])
    assert all_params(ours)[0] is param
    before[2] = 0.0
    assert_same_bits(ours.state[param]["exp_avg"], before)
    step(ours)


@pytest.mark.parametrize("flatten", [False, True])
def test_before_the_first_step_there_is_no_state(flatten: bool) -> None:
    ours, twin = (optimizer_of("Adam", flatten=flatten) for _ in range(2))
    new = replace(ours)
    assert new not in ours.state
    twin = optimizer_of("Adam", first=new.detach())
    step(ours, twin)
    assert_same_optimizers(ours, twin)
