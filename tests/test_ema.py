"""Averages of the weights: torch's on the reference, within an ulp or two on kernels; swapped in and out to the bit."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import (
    MIXED,
    Options,
    both,
    groups_of,
    kernel_options,
    normal,
    set_gradients,
    sizes_for,
    step,
)
from checks import Snapshot, all_params, assert_close, assert_same_bits, assert_same_optimizers
from host_cuda.backend import HostCudaBackend
from tolerances import Tolerance
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
OPTIONS = [*kernel_options(), MIXED]
DECAYS = (0.0, 0.5, 0.999)
NEAR = Tolerance(2, "max(|ema|, |p|)", "the difference is rounded, and what it is added to")


def _optimizer(options: Options, backend: str, **more: Any) -> Any:
    instance, device = chosen(backend)
    # a mixed launch with every rule
    groups = groups_of(sizes_for(13 if options.mixed else 3), device, mixed=options.mixed)
    return options.ours(groups, backend=instance, **more)


def _train(*optimizers: Any, steps: range = range(3), **how: Any) -> Any:
    """The same gradients to all; every other step some have none."""
    for number in steps:
        for optimizer in optimizers:
            set_gradients(optimizer.param_groups, number, 3 if number % 2 else 0)
            optimizer.step(**how)
    return optimizers[0]


def _averages(optimizer: Any) -> list[Tensor]:
    return [optimizer.state[p]["ema"] for p in all_params(optimizer)]


def _values(optimizer: Any) -> list[Tensor]:
    return [p.detach().clone() for p in all_params(optimizer)]


def _without(optimizer: Any, *names: str) -> Any:
    """What is left to compare with an optimizer that does not have these."""
    state = {
        p: {k: v for k, v in entry.items() if k not in names}
        for p, entry in optimizer.state.items()
    }
    return SimpleNamespace(param_groups=optimizer.param_groups, state=state)


def _assert_all_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_same_bits(a, b, f"parameter {number}")


def _assert_averaged(optimizer: Any, old: list[Tensor], decay: float) -> None:
    """The averages are `old` where nothing moved, else a lerp from there to the weights."""
    for p, ema, before in zip(all_params(optimizer), _averages(optimizer), old, strict=True):
        if p.grad is None:
            assert_same_bits(ema, before)
            continue
        exact = torch.lerp(before.double(), p.detach().double(), 1 - decay)
        assert_close(ema, exact, torch.maximum(before.abs(), p.detach().abs()), NEAR)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_reference_averages_as_torch(
    options: Options, decay: float, dtype: torch.dtype
) -> None:
    groups = groups_of([[0, 1, 17], [63, 15]], dtype=dtype, mixed=options.mixed)
    ours = options.ours(groups, backend="reference", ema_decay=decay)
    expected = dict(zip(all_params(ours), _values(ours), strict=True))
    for number in range(4):
        _train(ours, steps=range(number, number + 1))
        moved = [p for p in expected if p.grad is not None]
        get_ema_multi_avg_fn(decay)([expected[p] for p in moved], moved, None)
    _assert_all_same(_averages(ours), list(expected.values()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@by_backend
def test_near_a_lerp_and_the_update_is_what_it_was(backend: str, options: Options) -> None:
    if is_interpreting() and options.rule == "adam":
        pytest.skip("left out: the interpreter's time; the mixed launch has every rule")
    ours, never = _optimizer(options, backend, ema_decay=0.9), _optimizer(options, backend)
    on_cpu = _optimizer(options, "cpu", ema_decay=0.9)
    old = _values(ours)
    for number in range(3):
        _train(ours, never, on_cpu, steps=range(number, number + 1))
        _assert_averaged(ours, old, 0.9)
        old = [ema.clone() for ema in _averages(ours)]
    assert_same_optimizers(_without(ours, "ema"), never)
    assert ours.launches == (0 if backend == "reference" else 3)
    if backend != "reference" and not is_interpreting():
        assert_same_optimizers(ours, on_cpu)


@pytest.mark.parametrize("decay", DECAYS)
@by_backend
def test_decays(backend: str, decay: float) -> None:
    ours = _optimizer(ADAM, backend, ema_decay=decay)
    old = _values(ours)
    step(ours)
    _assert_averaged(ours, old, decay)
    if decay == 0:
        _assert_all_same(_averages(ours), all_params(ours))


@by_backend
def test_by_role_and_by_group(backend: str) -> None:
    by_role = _optimizer(ADAM, backend, ema_decay={"body": 0.9})
    instance, device = chosen(backend)
    groups = groups_of(sizes_for(3), device)
    for group in groups:
        group["ema_decay"] = 0.9 if group["role"] == "body" else None
    by_group = ADAM.ours(groups, backend=instance, ema_decay=0.1)
    everywhere = _optimizer(ADAM, backend, ema_decay=0.9)
    _train(by_role, by_group, everywhere)
    assert_same_optimizers(by_role, by_group)
    assert [("ema" in by_role.state[p]) for p in all_params(by_role)] == [True] * 6 + [False] * 3
    for group in everywhere.param_groups:
        for p in group["params"] if group["role"] == "head" else ():
            del everywhere.state[p]["ema"]
    assert_same_optimizers(by_role, everywhere)
    assert by_role.last_step.launches == (0 if backend == "reference" else 1)


@by_backend
def test_swapped_in_and_out_to_the_bit(backend: str) -> None:
    ours, never = (_optimizer(ADAM, backend, ema_decay=0.9) for _ in range(2))
    _train(ours, never)
    places = [p.data_ptr() for p in all_params(ours)]
    weights, averages = _values(ours), [ema.clone() for ema in _averages(ours)]
    with ours.ema_weights():
        _assert_all_same(all_params(ours), averages)
        _assert_all_same(_averages(ours), weights)
        assert [p.data_ptr() for p in all_params(ours)] == places
    _assert_all_same(all_params(ours), weights)
    with pytest.raises(KeyError), ours.ema_weights():
        raise KeyError
    _train(ours, never, steps=range(3, 5))
    assert_same_optimizers(ours, never)


def test_evaluation_by_a_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    ours = sf.StackelbergAdamW(model.parameters(), lr=0.1, backend="cpu", ema_decay=0.5)
    batch = normal((6, 3), 1)
    with ours.ema_weights():  # no step yet: nothing to put in
        pass
    for _ in range(3):
        ours.zero_grad()
        model(batch).square().sum().backward()
        ours.step()
    averaged = copy.deepcopy(model)
    for p, q in zip(averaged.parameters(), model.parameters(), strict=True):
        p.data.copy_(ours.state[q]["ema"])
    with ours.ema_weights(), torch.inference_mode():
        assert_same_bits(model.eval()(batch), averaged.eval()(batch))
    model(batch).sum().backward()


REFUSED: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: o.step(),
    "state_dict": lambda o: o.state_dict(),
    "load_state_dict": lambda o: o.load_state_dict(
        {"state": {}, "param_groups": [{"params": [0]}]}
    ),
    "add_param_group": lambda o: o.add_param_group({"params": [nn.Parameter(torch.ones(2))]}),
    "pickling": pickle.dumps,
    "copying": copy.deepcopy,
    "ema_weights": lambda o: o.ema_weights().__enter__(),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_refused_while_the_averages_are_in(refused: Callable[[Any], Any]) -> None:
    ours = sf.StackelbergAdamW([nn.Parameter(normal(5, 1))], backend="cpu", ema_decay=0.9)
    step(ours)
    outside, again = Snapshot(ours), ours.ema_weights()
    with ours.ema_weights():
        inside = Snapshot(ours)
        with pytest.raises(RuntimeError, match="leave ema_weights"):
            refused(ours)
        with pytest.raises(RuntimeError, match="leave ema_weights"), again:
            pass
        inside.assert_unchanged()
    outside.assert_unchanged(versions=False)


def test_a_scaler_refused_while_the_averages_are_in_leaves_nothing() -> None:
    """Or the next step would divide by its scale twice."""
    p = nn.Parameter(torch.ones(3))
    ours = sf.StackelbergSGD([p], lr=1.0, ema_decay=0.5, backend="cpu")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(p.sum()).backward()
    with ours.ema_weights(), pytest.raises(RuntimeError, match="leave ema_weights"):
        scaler.step(ours)
    scaler.step(ours)
    assert p.tolist() == [0.0] * 3


def test_averages_that_do_not_fit_are_not_put_in_halfway() -> None:
    params = [nn.Parameter(normal(3, i)) for i in range(2)]
    ours = sf.StackelbergAdamW(params, backend="cpu", ema_decay=0.9)
    step(ours)
    params[1].data = torch.ones(4)
    before = Snapshot(ours)
    with pytest.raises(RuntimeError), ours.ema_weights():
        pass
    before.assert_unchanged()


def test_no_group_averages() -> None:
    ours = sf.StackelbergAdamW([nn.Parameter(torch.ones(2))])
    with pytest.raises(RuntimeError, match="no param group has an ema_decay"):
        ours.ema_weights()


@pytest.mark.parametrize("how", ["load", "load_meanwhile", "deepcopy", "pickle"])
@by_backend
def test_continuing_is_as_not_interrupted(backend: str, how: str) -> None:
    ours = _train(_optimizer(MIXED, backend, ema_decay=0.9))
    if how.startswith("load"):
        again = _optimizer(MIXED, backend, ema_decay=0.9)
        if how == "load_meanwhile":
            _train(again, steps=range(5, 7))
        again.load_state_dict(ours.state_dict())
        for p, q in zip(all_params(again), all_params(ours), strict=True):
            p.data.copy_(q.data)
    else:
        again = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    _train(ours, again, steps=range(3, 6))
    assert_same_optimizers(again, ours)
    _assert_all_same(_averages(again), _averages(ours))


@pytest.mark.parametrize("source", ["torch", "ours without averages"])
def test_a_dict_without_averages_begins_them_with_the_weights(source: str) -> None:
    """And what a group says of its own average stays, because that dict says nothing of it."""
    ours, torchs = both(ADAM, num_groups=3)
    again, _ = both(ADAM, num_groups=3)
    again.param_groups[0]["ema_decay"] = 0.5
    step(torchs, ours, again)
    saved = (torchs if source == "torch" else ours).state_dict()
    for group in saved["param_groups"]:
        group.pop("ema_decay", None)
    again.load_state_dict(saved)
    assert [g["ema_decay"] for g in again.param_groups] == [0.5, None, None]
    old = _values(again)
    step(ours, again, seed=1)
    assert_same_optimizers(_without(again, "ema"), ours)
    p = again.param_groups[0]["params"][0]
    assert_same_bits(again.state[p]["ema"], torch.lerp(old[0], p.detach(), 0.5))


@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_torch_loads_ours_with_averages(options: Options) -> None:
    ours, torchs = both(options)
    for group in ours.param_groups:
        group["ema_decay"] = 0.9
    step(ours)
    torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        q.data.copy_(p.data)
    step(ours, torchs, seed=1)
    # torch's SGD counts no steps
    names = ("ema", "step") if options.rule == "sgd" else ("ema",)
    assert_same_optimizers(_without(ours, *names), _without(torchs, *names))


@by_backend
def test_turned_on_and_off(backend: str) -> None:
    ours, never = (_optimizer(ADAM, backend) for _ in range(2))
    for number, decay in enumerate([None, 0.5, None]):
        for group in ours.param_groups:
            group["ema_decay"] = decay
        weights = _values(ours)
        step(ours, never, seed=number)
        if decay is not None:  # they begin with the weights of now
            _assert_averaged(ours, weights, decay)
            kept = [ema.clone() for ema in _averages(ours)]
    _assert_all_same(_averages(ours), kept)
    assert_same_optimizers(_without(ours, "ema"), never)


@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda-on-host"])
def test_layouts(backend: str) -> None:
    """Channels-last, transposed, gapped, 0-d and without elements, beside contiguous copies."""
    params = [
        nn.Parameter(normal((4, 3, 5, 7), 1).to(memory_format=torch.channels_last)),
        nn.Parameter(normal((30, 40), 2).t()),
        nn.Parameter(normal((50, 200), 3)[:, ::2]),
        nn.Parameter(normal((), 4)),
        nn.Parameter(normal((0, 3), 5)),
    ]
    twins = [nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in params]
    pair = [ADAM.ours(side, backend=chosen(backend)[0], ema_decay=0.9) for side in (params, twins)]
    _train(*pair, steps=range(4))
    assert_same_optimizers(*pair)
    _assert_all_same(_averages(pair[0]), _averages(pair[1]))
    strides = [p.stride() for p in params]
    with pair[0].ema_weights(), pair[1].ema_weights():
        assert [p.stride() for p in params] == strides
        _assert_all_same(params, twins)
    assert_same_optimizers(*pair)


@by_backend
def test_a_first_step_that_a_scaler_skips(backend: str) -> None:
    ours, fresh = (_optimizer(ADAM, backend, ema_decay=0.9) for _ in range(2))
    ours.found_inf = torch.ones((), device=all_params(ours)[0].device)
    _train(ours, steps=range(1))
    ours.found_inf.zero_()
    _train(ours, fresh)
    assert_same_optimizers(ours, fresh)


@pytest.mark.parametrize("more", [{"max_grad_norm": 1.0}, {"update_every": 2}], ids=str)
@by_backend
def test_together_with(backend: str, more: dict[str, Any]) -> None:
    """A clipped step, and one that comes only every other time: the average follows what the weights did."""
    ours = _optimizer(ADAM, backend, ema_decay=0.5, **more)
    never = _optimizer(ADAM, backend, **more)
    old = _values(ours)
    for number in range(4):
        step(ours, never, seed=number)
        if number == 0 and "update_every" in more:  # an average begins when its parameter moves
            assert not any("ema" in ours.state[p] for p in all_params(ours))
            continue
        if number == 2 and "update_every" in more:
            _assert_all_same(_averages(ours), old)
        else:
            _assert_averaged(ours, old, 0.5)
        old = [ema.clone() for ema in _averages(ours)]
    assert_same_optimizers(_without(ours, "ema"), never)
    launches = 2 if "max_grad_norm" in more else 1
    assert ours.last_step.launches == (0 if backend == "reference" else launches)


@pytest.mark.skipif(not HostCudaBackend.status().available, reason=HostCudaBackend.status().reason)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_replays_average_too(options: Options) -> None:
    ours, eager = (_optimizer(options, "cuda-on-host", ema_decay=0.9) for _ in range(2))
    for group in ours.param_groups:
        group["capturable"] = True
    _train(ours, eager, steps=range(0, 3, 2))
    table = ours._engine.units[0].table
    for _ in range(3):
        ours._engine.units[0].backend.replay()
        # parameters without elements are counted outside of the kernel
        table.steps[table.counts._empty] += 1
        eager.step()
    assert_same_optimizers(ours, eager)


@by_backend
def test_nan_stays_where_it_is(backend: str) -> None:
    instance, device = chosen(backend)
    params = [nn.Parameter(normal(20, i).to(device)) for i in range(2)]
    ours = sf.StackelbergSGD(params, lr=0.1, backend=instance, ema_decay=0.9)
    for number in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        if number == 0:
            params[0].grad[3] = torch.nan
        ours.step()
    for ema, wrong in zip(_averages(ours), ([3], []), strict=True):
        assert ema.isnan().nonzero().flatten().tolist() == wrong


BAD = (-0.1, 1.0, 1.5, math.nan, math.inf, "0.9", [0.9], True, torch.ones(2), {"body": 0.5})


@pytest.mark.parametrize("decay", BAD, ids=repr)
def test_bad_decays(decay: Any) -> None:
    name = r"param group 1 \(head\).*ema_decay"
    groups = groups_of([[3], [4]])
    ours = sf.StackelbergAdamW(groups, backend="cpu", ema_decay=0.9)
    step(ours)
    set_gradients(ours.param_groups, 1)
    before = Snapshot(ours)
    added = {"params": [nn.Parameter(torch.ones(2))], "ema_decay": decay}
    with pytest.raises((ValueError, TypeError), match=r"param group 2 \(body\).*ema_decay"):
        ours.add_param_group(added)
    ours.param_groups[1]["ema_decay"] = decay
    with pytest.raises((ValueError, TypeError), match=name):
        ours.step()
    before.assert_unchanged()
    if not isinstance(decay, dict):
        with pytest.raises((ValueError, TypeError), match=name):
            sf.StackelbergAdamW(groups_of([[3], [4]]), ema_decay={"head": decay})
    with pytest.raises(ValueError, match="unknown role 'tail'"):
        sf.StackelbergAdamW(groups_of([[3], [4]]), ema_decay={"tail": 0.5})


def test_differentiable_steps_are_not_averaged() -> None:
    with pytest.raises(ValueError, match=r"param group 0 \(body\): differentiable"):
        sf.StackelbergAdamW([nn.Parameter(torch.ones(3))], differentiable=True, ema_decay=0.9)
