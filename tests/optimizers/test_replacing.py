"""`replace`: a parameter of other rows takes the place and the state of another, as surgery by hand would have it."""

from __future__ import annotations

import copy
import pickle
import resource
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from backends import by_backend, by_host_backend, chosen
from cases import normal, step
from checks import all_params, assert_agree, assert_same_bits, assert_same_optimizers
from failing_allocator import ALLOCATES
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import stackelberg_fused as sf
from stackelberg_fused.engine.state_conversion import decoded

WIDTH = 150  # of a row: two blocks of 8 bits, of which one is not full
ROWS = [4, -1, 0, 5, 0]


class Kind(NamedTuple):
    """A class, the dtype of its parameters, and settings."""

    optimizer: Callable[..., Any]
    dtype: torch.dtype
    settings: dict[str, Any]


ADAM, NARROW, WIDE = sf.StackelbergAdamW, torch.bfloat16, torch.float32
MEAN = {"update_every": 2, "update_every_grads": "mean"}
KINDS = {
    "Adam": Kind(sf.StackelbergAdam, WIDE, {"amsgrad": True}),
    "average and turns": Kind(ADAM, WIDE, {"ema_decay": 0.9, **MEAN}),
    "momentum": Kind(sf.StackelbergSGD, WIDE, {"momentum": 0.9, "dampening": 0.5}),
    "state of 16 bits": Kind(ADAM, WIDE, {"state_dtype": "bfloat16", "amsgrad": True}),
    "state of 8 bits": Kind(ADAM, WIDE, {"state_dtype": "8bit", "ema_decay": 0.9}),
    "momentum of 8 bits": Kind(
        sf.StackelbergSGD, NARROW, {"momentum": 0.9, "state_dtype": "8bit", "master": "split8"}
    ),
    "nearest": Kind(ADAM, NARROW, {"ema_decay": 0.9}),
    "kahan": Kind(ADAM, NARROW, {"master": "kahan"}),
    "split16": Kind(ADAM, NARROW, {"master": "split16", "ema_decay": 0.9}),
    "split8": Kind(ADAM, NARROW, {"master": "split8"}),
    "float32 master": Kind(ADAM, NARROW, {"master": "fp32", "state_dtype": "8bit"}),
    "stochastic": Kind(ADAM, NARROW, {"master": "stochastic", "state_dtype": "bfloat16"}),
    "counts on the device": Kind(ADAM, WIDE, {"capturable": True, **MEAN}),
    "float64": Kind(ADAM, torch.float64, {"ema_decay": 0.9}),
}
by_kind = pytest.mark.parametrize("kind", KINDS)
BEGIN_WITH_WEIGHTS = ("ema", "master")


def _optimizer(kind: str, backend: str = "cpu", first: Tensor | None = None, **more: Any) -> Any:
    """A matrix and a vector, and a vector that is the head."""
    instance, device = chosen(backend)
    cls, dtype, settings = KINDS[kind]
    if dtype is torch.float64 and backend != "reference":
        pytest.skip("float64 is the reference's")
    params = [
        nn.Parameter(normal(s, i).to(device, dtype)) for i, s in enumerate([(6, WIDTH), (5,), (4,)])
    ]
    if first is not None:
        params[0] = nn.Parameter(first.clone())
    groups = [{"params": params[:2]}, {"params": params[2:], "role": "head", "lr": 0.2}]
    return cls(groups, lr=0.1, backend=instance, **{**settings, **more})


def _by_rows(value: Tensor, begin: Tensor, rows: list[int] = ROWS) -> Tensor:
    """What surgery by hand makes of a tensor of the state: row by row."""
    made = [value[row] if row >= 0 else begin[i].to(value.dtype) for i, row in enumerate(rows)]
    return torch.stack(made) if made else value[:0].clone()


def _new_weights(old: Tensor, rows: list[int] = ROWS) -> Tensor:
    fresh = normal((len(rows), *old.shape[1:]), 99).to(old)
    return _by_rows(old.detach(), fresh, rows)


def _by_hand(optimizer: Any, weights: Tensor, rows: list[int] = ROWS) -> dict[str, Any]:
    """The state dict of an optimizer whose first parameter was replaced."""
    packed = copy.deepcopy(optimizer.state_dict())
    for name, value in packed["state"].get(0, {}).items():
        if isinstance(value, Tensor) and value.dim():
            begins = name in BEGIN_WITH_WEIGHTS
            begin = weights if begins else value.new_zeros((len(rows), *value.shape[1:]))
            packed["state"][0][name] = _by_rows(value, begin, rows)
    return packed


def _replace(optimizer: Any, rows: Any = ROWS, index: int = 0) -> nn.Parameter:
    old = all_params(optimizer)[index]
    new = nn.Parameter(_new_weights(old, list(rows)))
    optimizer.replace(old, new, rows)
    return new


@by_kind
@by_backend
def test_as_a_state_dict_that_was_cut_by_hand(backend: str, kind: str) -> None:
    """The same bits in parameters and state, at once and over steps that follow."""
    ours = _optimizer(kind, backend)
    for number in range(3):
        step(ours, seed=number)
    weights = _new_weights(all_params(ours)[0])
    cut = _by_hand(ours, weights)
    old, new = all_params(ours)[0], nn.Parameter(weights.clone())
    ours.replace(old, new, torch.tensor(ROWS))
    twin = _optimizer(kind, backend, weights)
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
        _replace(ours, [6, -1], index=1)
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
    ours = _optimizer("state of 8 bits", backend)
    step(ours)
    old = all_params(ours)[0]
    where = list(range(6)) if rows is None else [int(row) for row in rows]
    cut = _by_hand(ours, weights := _new_weights(old, where), where)
    ours.replace(old, new := nn.Parameter(weights), rows)
    for name, value in cut["state"][0].items():
        if value.dim():
            assert_same_bits(ours.state[new][name], value, name)
    step(ours, seed=1)
    assert new.isfinite().all()


def test_all_rows_go_and_come_again() -> None:
    ours = _optimizer("Adam")
    step(ours)
    empty = _replace(ours, [])
    step(ours)
    assert ours.state[empty]["exp_avg"].shape == (0, WIDTH)
    again = _replace(ours, [-1, -1])
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
    new = _replace(ours, rows)
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
    new = _turned(_new_weights(old, where), turned[1])
    ours.replace(old, new, rows)
    for name, found in _in_float32(ours.state[new]).items():
        begin = new.detach() if name == "ema" else torch.zeros_like(new)
        expected = _by_rows(before[name], begin, where)
        is_rounded = "state_dtype" in settings and turned != (False, False)
        most = 0.1 * float(expected.abs().max()) if is_rounded else 0.0
        torch.testing.assert_close(found, expected, atol=most, rtol=0.0)
        assert found.stride() == new.stride()
    step(ours)


@pytest.mark.parametrize("kind", ["kahan", "split16", "split8", "float32 master"])
@by_host_backend
def test_a_weight_that_was_changed_counts(backend: str, kind: str) -> None:
    """What lies beside a weight belongs to that very weight."""
    ours = _optimizer(kind, backend)
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
    ours = _optimizer("Adam")
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
    ours, twin = (_optimizer("Adam", flatten=flatten) for _ in range(2))
    new = _replace(ours)
    assert new not in ours.state
    twin = _optimizer("Adam", first=new.detach())
    step(ours, twin)
    assert_same_optimizers(ours, twin)


def test_it_has_the_place_of_the_old_one() -> None:
    """Its name, its group, its player, its rate, and a place in an arena."""
    model = nn.ModuleDict({"points": nn.Linear(3, 6, bias=False), "head": nn.Linear(3, 6)})
    ours = ADAM(sf.split_body_head(model, head="head"), lr=0.1, head_lr_ratio=5.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(ours, 0.5)
    step(ours)
    lists = [group["params"] for group in ours.param_groups]
    names = [list(group["param_names"]) for group in ours.param_groups]
    new = _replace(ours, [1, 0])
    assert all(
        group["params"] is held for group, held in zip(ours.param_groups, lists, strict=True)
    )
    assert lists[0][0] is new
    assert [group["param_names"] for group in ours.param_groups] == names
    assert ours.player("body").param_groups[0]["params"][0] is new
    step(ours)
    schedule.step()
    assert [group["lr"] for group in ours.param_groups] == [0.05, 0.25]
    assert new.untyped_storage().nbytes() == new.numel() * new.element_size()
    with pytest.raises(ValueError, match=f"parameter '{names[0][0]}' of param group 0"):
        ours.replace(new, nn.Parameter(torch.ones(2, 4)))


def test_a_step_count_of_the_users_stays_theirs() -> None:
    ours = _optimizer("Adam")
    step(ours)
    old, mine = all_params(ours)[0], torch.tensor(5.0)
    ours.state[old]["step"] = mine
    step(ours, seed=1)
    new = _replace(ours)
    step(ours, seed=2)
    assert ours.state[new]["step"] is mine
    assert float(mine) == 7.0


def test_by_a_player() -> None:
    ours = _optimizer("Adam")
    step(ours)
    head = all_params(ours)[2]
    new = nn.Parameter(torch.ones(2))
    ours.player("head").replace(head, new, [3, 3])
    assert ours.param_groups[1]["params"] == [new]
    with pytest.raises(ValueError, match="'body'"):
        ours.player("body").replace(new, nn.Parameter(torch.ones(2)))


def test_flat_gradients_have_a_place_for_it() -> None:
    ours, twin = _optimizer("Adam", grads="flat"), _optimizer("Adam")
    for optimizer in (ours, twin):
        sum(p.square().sum() for p in all_params(optimizer)).backward()
        optimizer.step()
    kept = all_params(ours)[2].grad.clone()
    old = all_params(ours)[0]
    new, _ = _replace(ours), _replace(twin)
    assert old.grad is None
    assert_same_bits(all_params(ours)[2].grad, kept)
    (buffer,) = ours.flat_grads["body"]
    assert buffer.data_ptr() == new.grad.data_ptr()
    assert not new.grad.any()
    for optimizer in (ours, twin):
        optimizer.zero_grad()
        sum(p.square().sum() for p in all_params(optimizer)).backward()
        optimizer.step()
    assert_same_optimizers(ours, twin)


def test_released_gradients_are_those_of_the_new_one() -> None:
    ours, twin = _optimizer("Adam", release="backward"), _optimizer("Adam")

    def train(optimizer: Any) -> None:
        sum(p.square().sum() for p in all_params(optimizer)).backward()
        optimizer.step()
        optimizer.zero_grad()

    for optimizer in (ours, twin):
        train(optimizer)
        _replace(optimizer)
        train(optimizer)
    assert_same_optimizers(ours, twin)
    assert all(p.grad is None for p in all_params(ours))
    all_params(ours)[0].sum().backward()
    with pytest.raises(
        RuntimeError, match=r"parameter 0 of param group 0 .*step\(\), or zero_grad"
    ):
        _replace(ours, [0])
    ours.zero_grad()
    _replace(ours, [0])


def test_alternating() -> None:
    ours = _optimizer("Adam", mode="alternating")

    def closure() -> Tensor:
        ours.zero_grad()
        loss = torch.stack([p.square().sum() for p in all_params(ours)]).sum()
        loss.backward()
        return loss

    ours.step(closure)
    new = _replace(ours)
    ours.step(closure)
    assert float(ours.state[new]["step"]) == 2.0


def test_written_and_read_afterwards() -> None:
    ours = _optimizer("float32 master")
    step(ours)
    _replace(ours)
    read = pickle.loads(pickle.dumps(ours))
    loaded = _optimizer("float32 master", first=torch.zeros(len(ROWS), WIDTH, dtype=NARROW))
    loaded.load_state_dict(ours.state_dict())
    with torch.no_grad():
        for p, q in zip(all_params(loaded), all_params(ours), strict=True):
            p.copy_(q)
    step(ours, read, loaded)
    assert_same_optimizers(read, ours)
    assert_same_optimizers(loaded, ours)


@pytest.mark.parametrize(
    "more", [{}, {"grads": "flat"}, {"release": "backward"}, {"mode": "alternating"}]
)
def test_nothing_of_the_old_ones_is_kept(more: dict[str, Any]) -> None:
    """A thousand times, growing and shrinking: neither parameters nor arenas stay."""
    params = [nn.Parameter(torch.zeros(4000, 16)), nn.Parameter(torch.zeros(3))]
    ours = ADAM(
        [{"params": params[:1]}, {"params": params[1:], "role": "head"}],
        lr=0.1,
        ema_decay=0.9,
        **more,
    )
    if "mode" not in more:
        (params[0].sum() + params[1].sum()).backward()
        ours.step()
    gone, peaks = [], []
    for number in range(1000):
        old = ours.param_groups[0]["params"][0]
        count = 3000 + number % 7 * 400
        rows = torch.arange(count) % len(old)
        new = nn.Parameter(torch.zeros(count, 16))
        ours.replace(old, new, rows)
        entry = ours.state.get(new, {})
        gone.append([weakref.ref(t) for t in (new, *entry.values()) if isinstance(t, Tensor)])
        del old, entry
        if number in (200, 999):
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert not any(ref() is not None for refs in gone[:-1] for ref in refs)
    assert peaks[1] - peaks[0] < 40_000  # KiB, where 800 parameters with their state are 900 MB
    assert len(ours._shared.across_rebuilds.placed) <= 2
    assert len(ours._shared.accumulated._left) <= 2
