"""Groups that move on every n-th step: the bits of gradients held back, or summed up, outside of the optimizer."""

from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import MIXED, Options, groups_of, kernel_options, normal, set_gradients, sizes_for
from checks import Snapshot, all_params, assert_same_bits, assert_same_optimizers
from host_cuda.backend import HostCudaBackend
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
MOMENTUM = Options("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5})
EVERY = (2, 1, 3)  # groups take turns between these
LAYOUTS = ["reference", "cpu", "cuda-on-host"]
by_mode = pytest.mark.parametrize("mode", ["latest", "mean"])
needs_shim = pytest.mark.skipif(
    not HostCudaBackend.status().available, reason=HostCudaBackend.status().reason
)


def _optimizer(options: Options, backend: str, mode: str, **more: Any) -> Any:
    instance, device = chosen(backend)
    every, capturable = more.pop("every", EVERY), more.pop("capturable", False)
    # a mixed launch with every rule
    groups = groups_of(sizes_for(13 if options.mixed else 3), device, mixed=options.mixed)
    for index, group in enumerate(groups):
        group.update(update_every=every[index % len(every)], update_every_grads=mode)
        group["capturable"] = capturable
    return options.ours(groups, backend=instance, **more)


class ByHand:
    """An optimizer without turns: whoever steps it holds gradients back, or sums them up, until it is their turn."""

    def __init__(self, options: Options, backend: str, mode: str, **more: Any) -> None:
        self.optimizer = _optimizer(options, backend, mode, every=(1,), **more)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        self.begin(mode, EVERY)

    def begin(self, mode: str, every: tuple[int, ...]) -> None:
        self._mode = mode
        self._every = [every[i % len(every)] for i in range(len(self.param_groups))]
        self._waited = [0] * len(self._every)
        self._sums: dict[Tensor, Tensor] = {}

    def step(self, role: str | None = None) -> None:
        span = [i for i, group in enumerate(self.param_groups) if role in (None, group["role"])]
        if all(p.grad is None for i in span for p in self.param_groups[i]["params"]):
            return
        for i in span:
            self._waited[i] = (self._waited[i] + 1) % self._every[i]
            for p in self.param_groups[i]["params"]:
                if self._mode == "mean" and self._every[i] > 1:
                    self._sum_up(p, self._every[i], is_turn=not self._waited[i])
                if self._waited[i]:
                    p.grad = None
        self.optimizer.step(role=role)

    def _sum_up(self, p: Tensor, every: int, is_turn: bool) -> None:
        if p.grad is not None:
            self._sums[p] = self._sums.get(p, torch.zeros_like(p.grad)) + p.grad
        if is_turn:
            p.grad = self._sums.pop(p) * (1 / every) if p in self._sums else None


def _pair(options: Options, backend: str, mode: str, **more: Any) -> tuple[Any, ByHand]:
    return _optimizer(options, backend, mode, **more), ByHand(options, backend, mode, **more)


def _assert_same(ours: Any, by_hand: ByHand) -> None:
    """In what an optimizer without turns has too, as soon as there was a first turn."""
    sides = [
        SimpleNamespace(
            param_groups=side.param_groups,
            state={
                p: {k: v for k, v in entry.items() if k not in ("grad_sum", "waited")}
                for p, entry in side.state.items()
                if float(entry.get("step", 0))
            },
        )
        for side in (ours, by_hand)
    ]
    assert_same_optimizers(*sides)


def _train(*sides: Any, steps: range = range(7), **how: Any) -> None:
    """The same gradients to all; in two of three steps, others have none."""
    for number in steps:
        for side in sides:
            set_gradients(side.param_groups, number, (0, 3, 2)[number % 3])
            side.step(**how)


@pytest.mark.parametrize("options", [*kernel_options(), MIXED], ids=str)
@by_mode
@by_backend
def test_as_by_hand(backend: str, mode: str, options: Options) -> None:
    if is_interpreting() and options.rule == "adam":
        pytest.skip("left out: the interpreter's time; the mixed launch has every rule")
    ours, by_hand = _pair(options, backend, mode)
    _train(ours, by_hand)
    _assert_same(ours, by_hand)
    assert ours.launches == (0 if backend == "reference" else 7)  # none more for who waits


@pytest.mark.parametrize("limits", [1.0, {"body": 0.5, "head": 2.0}, math.inf], ids=str)
@by_mode
@by_backend
def test_clipping_is_by_the_gradients_that_move(backend: str, mode: str, limits: Any) -> None:
    if is_interpreting() and limits != 1.0:
        pytest.skip("left out: the interpreter's time")
    every = {"body": 3, "head": 2}
    ours, by_hand = _pair(ADAM, backend, mode, max_grad_norm=limits)
    for group in ours.param_groups:
        group["update_every"] = every[group["role"]]
    by_hand.begin(mode, tuple(group["update_every"] for group in ours.param_groups))
    for number in range(6):
        _train(ours, by_hand, steps=range(number, number + 1))
        last, expected = ours.last_step, by_hand.optimizer.last_step
        for role, norm in last.grad_norm.items():
            assert_same_bits(norm, expected.grad_norm[role])
            assert role == "total" or bool(norm) == ((number + 1) % every[role] == 0)
        for role, factor in last.clip_factor.items():
            assert_same_bits(factor, expected.clip_factor[role])
    _assert_same(ours, by_hand)
    assert last.launches == (0 if backend == "reference" else 2)


@by_mode
@by_backend
def test_a_scaler_that_skips_in_the_middle_of_a_round(backend: str, mode: str) -> None:
    ours, by_hand = _pair(ADAM, backend, mode)
    device = all_params(ours)[0].device
    for number in range(9):
        # a scale that is a power of two rounds nothing
        scale, overflow = 2.0 ** (number % 4), number in (0, 2, 5)
        set_gradients(ours.param_groups, number, 3 if number % 2 else 0)
        for p in all_params(ours):
            if p.grad is not None:
                p.grad.mul_(torch.inf if overflow else scale)
        ours.grad_scale = torch.full((), scale, device=device)
        ours.found_inf = torch.full((), float(overflow), device=device)
        ours.step()
        if not overflow:
            set_gradients(by_hand.param_groups, number, 3 if number % 2 else 0)
            by_hand.step()
    _assert_same(ours, by_hand)


@by_mode
@by_backend
def test_each_role_counts_its_own_steps(backend: str, mode: str) -> None:
    ours, by_hand = _pair(ADAM, backend, mode)
    for number, role in enumerate(["body", "head", "head", None, "body", "head", None, "head"]):
        _train(ours, by_hand, steps=range(number, number + 1), role=role)
    _assert_same(ours, by_hand)


@by_mode
@by_backend
def test_steps_without_gradients(backend: str, mode: str) -> None:
    """Not counted where nobody has any; else counted, by those without too."""
    ours, by_hand = _pair(ADAM, backend, mode)
    history = [(), ("head",), ("body", "head"), (), ("body",), ("head",), ("head",)]
    for number, present in enumerate(history):
        for side in (ours, by_hand):
            for group in side.param_groups:
                set_gradients([group], number, 0 if group["role"] in present else 1)
            side.step()
    _assert_same(ours, by_hand)
    assert ours.launches == (0 if backend == "reference" else 5)
    before = Snapshot(ours)
    ours.step(role="body")
    before.assert_unchanged()


@by_mode
@by_backend
def test_a_parameter_frozen_halfway(backend: str, mode: str) -> None:
    ours, by_hand = _pair(ADAM, backend, mode)
    for number in range(5):
        for side in (ours, by_hand):
            set_gradients(side.param_groups, number)
            for group in side.param_groups if number else ():
                group["params"][-1].requires_grad_(False).grad = None
            side.step()
    _assert_same(ours, by_hand)


@by_backend
def test_nan_in_a_gradient_that_goes_by(backend: str) -> None:
    ours, by_hand = _pair(ADAM, backend, "latest", max_grad_norm=1.0)
    for number in range(3):
        for side in (ours, by_hand):
            set_gradients(side.param_groups, number)
        for group in ours.param_groups:
            for p in group["params"] if (number + 1) % group["update_every"] else ():
                p.grad.fill_(torch.nan)
        ours.step()
        by_hand.step()
    _assert_same(ours, by_hand)
    assert not any(p.isnan().any() for p in all_params(ours))


@by_backend
def test_every_step_is_as_no_turns_at_all(backend: str) -> None:
    ours, plain = (_optimizer(ADAM, backend, mode, every=(1,)) for mode in ("mean", "latest"))
    _train(ours, plain, steps=range(3))
    assert_same_optimizers(ours, plain)
    assert not any({"grad_sum", "waited"} & set(entry) for entry in ours.state.values())


@by_backend
def test_no_state_for_parameters_without_gradients(backend: str) -> None:
    plain = _optimizer(ADAM, backend, "latest", every=(1,))
    set_gradients(plain.param_groups, 0, 3)
    plain.step()
    assert list(plain.state) == [p for p in all_params(plain) if p.grad is not None]


@by_mode
def test_by_role_and_with_a_schedule(mode: str) -> None:
    how = {"update_every": {"body": 3}, "update_every_grads": mode, "backend": "cpu"}
    ours, by_hand = MOMENTUM.ours(groups_of(sizes_for(3)), **how), ByHand(MOMENTUM, "cpu", mode)
    by_hand.begin(mode, (3, 3, 1))
    schedules = [ExponentialLR(optimizer, 0.8) for optimizer in (ours, by_hand.optimizer)]
    for number in range(7):
        _train(ours, by_hand, steps=range(number, number + 1))
        for schedule in schedules:
            schedule.step()
    _assert_same(ours, by_hand)


def _continued(ours: Any, again: Any, how: str) -> Any:
    if how == "load":
        again.load_state_dict(copy.deepcopy(ours.state_dict()))
        for p, q in zip(all_params(again), all_params(ours), strict=True):
            p.data.copy_(q.data)
        return again
    return copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))


@pytest.mark.parametrize("how", ["load", "deepcopy", "pickle"])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("options", [ADAM, MOMENTUM], ids=str)
@by_mode
@by_backend
def test_continuing_in_the_middle_of_a_round(
    backend: str, mode: str, options: Options, capturable: bool, how: str
) -> None:
    if is_interpreting() and (how != "load" or options is MOMENTUM):
        pytest.skip("left out: the interpreter's time; what is carried over is the host's")
    for stop in (1, 4):
        ours, again = (_optimizer(options, backend, mode, capturable=capturable) for _ in range(2))
        for number in range(stop):
            set_gradients(ours.param_groups, number, 2)  # of some no gradient was seen until then
            ours.step()
        again = _continued(ours, again, how)
        _train(ours, again, steps=range(stop, stop + 3))
        assert_same_optimizers(again, ours)


@pytest.mark.parametrize("how", ["load", "deepcopy", "rebuild"])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("backend", LAYOUTS)
def test_a_group_without_any_gradient_yet_waits_on(
    backend: str, capturable: bool, how: str
) -> None:
    ours, same, again = (_optimizer(ADAM, backend, "mean", capturable=capturable) for _ in range(3))
    for optimizer in (ours, same):
        set_gradients(optimizer.param_groups, 0)
        set_gradients(optimizer.param_groups[:1], 0, 1)
        optimizer.step()
    if how == "rebuild":
        ours.param_groups[1]["params"] = list(ours.param_groups[1]["params"])
        again = ours
    else:
        again = _continued(ours, again, how)
    for number in (1, 2):
        _train(again, same, steps=range(number, number + 1))
        for p, q in zip(all_params(again), all_params(same), strict=True):
            assert_same_bits(p, q)


def test_counts_in_a_state_dict_are_not_rounded_to_the_parameters_dtype() -> None:
    params = [nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    how = {"lr": 1.0, "update_every": 200, "update_every_grads": "mean", "backend": "reference"}
    ours, again = (sf.StackelbergSGD([p], **how) for p in params)
    params[0].grad = torch.ones_like(params[0])
    for _ in range(150):
        ours.step()
    again.load_state_dict(ours.state_dict())
    # bfloat16 counts to 256
    assert float(again.state[params[1]]["waited"]) == float(ours.state[params[0]]["waited"]) == 301


@pytest.mark.parametrize("change", [{"update_every": 2}, {"update_every_grads": "mean"}], ids=str)
@pytest.mark.parametrize("meanwhile", ["nothing", "load", "deepcopy", "rebuild"])
@by_backend
def test_a_change_begins_a_new_round(backend: str, meanwhile: str, change: dict[str, Any]) -> None:
    mode = "latest" if "update_every_grads" in change else "mean"
    every = (change["update_every"],) if "update_every" in change else (5,)
    ours, by_hand = (side(ADAM, backend, mode) for side in (_optimizer, ByHand))
    for group in ours.param_groups:
        group["update_every"] = 5
    by_hand.begin(mode, (5,))
    _train(ours, by_hand, steps=range(3))
    if meanwhile in ("load", "deepcopy"):
        ours = _continued(ours, _optimizer(ADAM, backend, mode), meanwhile)
    for group in ours.param_groups:
        group.update(change)
    if meanwhile == "rebuild":
        ours.param_groups[1]["params"] = list(ours.param_groups[1]["params"])
    by_hand.begin("mean", every)
    _train(ours, by_hand, steps=range(3, 9))
    _assert_same(ours, by_hand)


@needs_shim
@pytest.mark.parametrize("options", [ADAM, MOMENTUM, MIXED], ids=str)
@by_mode
def test_replays_take_turns(mode: str, options: Options) -> None:
    ours, eager = (
        _optimizer(options, "cuda-on-host", mode, capturable=capturable)
        for capturable in (True, False)
    )
    _train(ours, eager, steps=range(1))
    unit = ours._engine.units[0]
    table, active = unit.table, unit.gradients.active
    for _ in range(7):
        unit.backend.replay()
        # parameters without elements are counted outside of the kernel
        turns = table.update_every, table.sums
        table.counts.advance_empty(table.spans[None], active, *turns, found_inf=None)
        eager.step()
        assert_same_optimizers(ours, eager)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@by_mode
def test_a_cuda_graph(mode: str, backend: str) -> None:
    more = {"max_grad_norm": 1.0, "ema_decay": 0.9}
    ours = _optimizer(ADAM, backend, mode, capturable=True, **more)
    eager = _optimizer(ADAM, backend, mode, **more)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _train(ours, eager, steps=range(1))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    for _ in range(7):
        graph.replay()
        eager.step()
    torch.cuda.synchronize()
    assert_same_optimizers(ours, eager)
    assert_same_bits(ours.last_step.grad_norm["total"], eager.last_step.grad_norm["total"])


def _gapped() -> Tensor:
    return normal((50, 200), 3)[:, ::2]


@pytest.mark.parametrize("gapped", [False, True])
@pytest.mark.parametrize("backend", LAYOUTS)
@by_mode
def test_waiting_leaves_graphs_good(mode: str, backend: str, gapped: bool) -> None:
    p = nn.Parameter(_gapped() if gapped else normal(20, 1))
    how = {"update_every": 2, "update_every_grads": mode}
    ours = sf.StackelbergSGD([p], lr=0.1, backend=chosen(backend)[0], **how)
    loss, version = p.square().sum(), p._version
    p.grad = torch.ones_like(p)
    ours.step()
    assert p._version == version
    loss.backward()
    loss = p.square().sum()
    ours.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("last", ["a gradient", "None"])
@pytest.mark.parametrize("counted", ["by the host", "on the device", "there after the host"])
@pytest.mark.parametrize("backend", ["cpu", "cuda-on-host"])
def test_moving_is_noted_by_autograd(backend: str, counted: str, last: str) -> None:
    """Also where nothing but an earlier gradient moves, and at a stage of waiting that the host has counted before."""
    params = [nn.Parameter(normal(20, i)) for i in range(2)]
    how = {"update_every": 2, "update_every_grads": "mean"}
    how["capturable"] = counted == "on the device"
    ours = sf.StackelbergAdamW(params, lr=0.1, backend=chosen(backend)[0], **how)
    for number in range(4):
        for p in params:
            p.grad = torch.ones_like(p)
        if number == 2 and counted == "there after the host":
            ours.found_inf = torch.zeros(())
        if number == 3 and last == "None":
            params[0].grad = None
        before, version = params[0].detach().clone(), params[0]._version
        ours.step()
    assert not torch.equal(params[0], before)
    assert params[0]._version > version


@pytest.mark.parametrize("backend", LAYOUTS)
@by_mode
def test_layouts(mode: str, backend: str) -> None:
    """Gapped, transposed, 0-d and without elements, beside contiguous copies; also by earlier gradients alone."""
    values = [_gapped(), normal((30, 40), 2).t(), normal((), 4), normal((0, 3), 5)]
    params = [nn.Parameter(v) for v in values]
    twins = [nn.Parameter(v.clone(memory_format=torch.contiguous_format)) for v in values]
    how = {"update_every": 3, "update_every_grads": mode, "backend": chosen(backend)[0]}
    pair = [ADAM.ours(side, **how) for side in (params, twins)]
    for number, skipped in enumerate([(), (1,), (0, 2), (0,), (3,), (1, 2, 0)]):
        for optimizer in pair:
            set_gradients(optimizer.param_groups, number)
            for i in skipped:
                all_params(optimizer)[i].grad = None
            optimizer.step()
        assert_same_optimizers(*pair)


@by_mode
def test_tables_of_several_dtypes_take_their_turns_together(mode: str) -> None:
    """One group over two tables, of which the second has no gradient on the first step."""
    params = [nn.Parameter(normal(5, i, d)) for i, d in enumerate([torch.float32, torch.float64])]
    ours = sf.StackelbergSGD(params, lr=1.0, update_every=2, update_every_grads=mode)
    before = [p.detach().clone() for p in params]
    params[0].grad = torch.ones_like(params[0])
    ours.step()
    params[1].grad = torch.ones_like(params[1])
    ours.step()
    assert not any(torch.equal(p, old) for p, old in zip(params, before, strict=True))


BAD = [{"update_every": v} for v in (0, -1, 1.5, True, "3", None, 2**21, {"body": 2})]
BAD += [{"update_every_grads": "sum"}, {"update_every_grads": None}]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_values(bad: dict[str, Any]) -> None:
    name = r"param group 1 \(head\).*update_every"
    ours = sf.StackelbergAdamW(groups_of([[3], [4]]), update_every=2, update_every_grads="mean")
    _train(ours, steps=range(1))
    before, kept = Snapshot(ours), dict(ours.param_groups[1])
    with pytest.raises((ValueError, TypeError), match=r"param group 2 \(body\).*update_every"):
        ours.add_param_group({"params": [nn.Parameter(torch.ones(2))], **bad})
    ours.param_groups[1].update(bad)
    with pytest.raises((ValueError, TypeError), match=name):
        ours.step()
    before.assert_unchanged()
    ours.param_groups[1].update(kept)
    ours.step()  # the round goes on
    assert all(float(ours.state[p]["step"]) == 1 for p in all_params(ours))
    groups = groups_of([[3], [4]])
    groups[1].update(bad)
    with pytest.raises((ValueError, TypeError), match=name):
        sf.StackelbergAdamW(groups)


def test_bad_roles_and_differentiable_steps() -> None:
    with pytest.raises(ValueError, match="unknown role 'tail'"):
        sf.StackelbergAdamW(groups_of([[3], [4]]), update_every={"tail": 2})
    with pytest.raises(ValueError, match=r"param group 0 \(body\): differentiable"):
        sf.StackelbergAdamW([nn.Parameter(torch.ones(3))], differentiable=True, update_every=2)
