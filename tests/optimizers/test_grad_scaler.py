"""`sf.GradScaler` beside torch's: the same steps are skipped, the same weights and scale come out."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import MIXED, Options, groups_of, kernel_options, normal, set_gradients, sizes_for
from checks import Snapshot, all_params, assert_same_bits, assert_same_optimizers
from tolerances import SEVERAL_STEPS
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

SCALE = 1024.0
ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
SCALERS = (sf.GradScaler, torch.amp.GradScaler)
STEPS, OVERFLOWS = 7, (0, 3)  # also the very first step
by_fused = pytest.mark.parametrize("fused", [None, True])


def _optimizer(options: Options, backend: str, **more: Any) -> Any:
    instance, device = chosen(backend)
    groups = groups_of(sizes_for(7), device, mixed=options.mixed)
    return options.ours(groups, backend=instance, **more)


def _scaler(cls: Any, device: str = "cpu", **how: Any) -> Any:
    scaler = cls(device, **{"init_scale": SCALE, "growth_interval": 2, **how})
    scaler.scale(torch.zeros((), device=device))  # creates its tensors
    return scaler


def _set_gradients(optimizer: Any, number: int, scale: float) -> None:
    """Gradients of a scaled loss; one element of one of them is infinite in the steps that overflow."""
    set_gradients(optimizer.param_groups, number, 3 if number % 3 == 1 else 0)
    with_gradient = [p for p in all_params(optimizer) if p.grad is not None and p.numel()]
    for p in with_gradient:
        p.grad.mul_(scale)
    if number in OVERFLOWS:
        with_gradient[number % len(with_gradient)].grad.view(-1)[-1] = (torch.inf, torch.nan)[
            number % 2
        ]


def _train(
    cls: Any, *optimizers: Any, between: Callable[..., None] | None = None, **how: Any
) -> Any:
    """Steps under one scaler, some of them skipped; returns the scales."""
    scaler, scales = _scaler(cls, all_params(optimizers[0])[0].device.type), []
    for number in range(STEPS):
        for optimizer in optimizers:
            _set_gradients(optimizer, number, scaler.get_scale())
        for optimizer in optimizers:
            if between is not None:
                between(scaler, optimizer)
            scaler.step(optimizer, **how)
        scaler.update()
        scales.append(scaler.get_scale())
    steps = [after / before for before, after in zip([SCALE, *scales], scales, strict=False)]
    assert {0.5, 2.0} <= set(steps)
    return scales


@pytest.mark.parametrize("options", [*kernel_options(), MIXED], ids=str)
@by_backend
def test_as_with_torchs_scaler(backend: str, options: Options) -> None:
    if is_interpreting() and options.rule == "adam":
        pytest.skip("left out: the interpreter's time")
    ours, torchs = (_optimizer(options, backend, fused=True) for _ in SCALERS)
    assert _train(sf.GradScaler, ours) == _train(torch.amp.GradScaler, torchs)
    assert_same_optimizers(ours, torchs)


@by_fused
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_as_torchs_optimizer_with_torchs_scaler(options: Options, fused: bool | None) -> None:
    ours = _optimizer(options, "cpu", fused=fused)
    torchs = options.torchs([{k: g[k] for k in ("params", "lr")} for g in groups_of(sizes_for(7))])
    assert _train(sf.GradScaler, ours) == _train(torch.amp.GradScaler, torchs)
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)


SETTINGS: dict[str, dict[str, Any]] = {
    "clipped": {"max_grad_norm": 0.5},
    "clipped by role": {"max_grad_norm": {"body": 0.25, "head": 2.0}},
    "average": {"ema_decay": 0.9},
    "turns": {"update_every": {"body": 3}},
    "turns, mean, clipped": {
        "update_every": {"body": 3},
        "update_every_grads": "mean",
        "max_grad_norm": 0.5,
    },
    "flat": {"grads": "flat"},
    "8 bits": {"state_dtype": "8bit"},
    "ball": {"constraint": {"body": sf.L2Ball(5.0)}},
}


@pytest.mark.filterwarnings("ignore:.*not in the flat buffer:UserWarning")
@pytest.mark.parametrize("name", SETTINGS)
@by_backend
def test_with_everything_that_a_step_may_do(backend: str, name: str) -> None:
    ours, torchs = (_optimizer(ADAM, backend, fused=True, **SETTINGS[name]) for _ in SCALERS)
    assert _train(sf.GradScaler, ours) == _train(torch.amp.GradScaler, torchs)
    assert_same_optimizers(ours, torchs)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("size", [1, 3, 15, 1000, 1023, 1025, 4095, 4096, 4097, 9000])
@by_backend
def test_an_infinity_is_found_wherever_it_is(backend: str, size: int, value: float) -> None:
    instance, device = chosen(backend)
    p = nn.Parameter(torch.ones(size, device=device))
    ours, scaler = sf.StackelbergSGD([p], lr=1.0, backend=instance), _scaler(sf.GradScaler, device)
    for position in sorted({0, size // 2, size - 1}):
        p.grad = torch.full_like(p, 3e38)  # whose square is no float32
        p.grad[position] = value
        scaler.step(ours)
        scaler.update()
        assert bool(ours.last_step.skipped)
    assert torch.equal(p, torch.ones_like(p))
    p.grad = torch.full_like(p, 3e38)
    scaler.step(ours)
    assert not bool(ours.last_step.skipped)
    assert bool((p < 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("fused", [None, True])
def test_other_dtypes(dtype: torch.dtype, fused: bool | None) -> None:
    p = nn.Parameter(torch.ones(5, dtype=dtype))
    ours, scaler = sf.StackelbergSGD([p], lr=1.0, fused=fused, master=None), _scaler(sf.GradScaler)
    p.grad = torch.full_like(p, SCALE)
    scaler.step(ours)
    scaler.update()
    assert p.tolist() == [0.0] * 5
    p.grad = torch.full_like(p, torch.nan)
    scaler.step(ours)
    assert p.tolist() == [0.0] * 5
    if dtype is torch.float64:
        scaler.update()
        p.grad = torch.full_like(p, 1e200)  # whose square is no float64
        scaler.step(ours)
        assert not bool(ours.last_step.skipped)


@pytest.mark.parametrize("grads", ["latest", "mean"])
@by_backend
def test_an_infinity_in_a_gradient_that_waits(backend: str, grads: str) -> None:
    """torch's scaler skips the step of all groups, and so does this one; nobody waits a step less by it."""
    sides = []
    for cls in SCALERS:
        turns = {"update_every": {"body": 2}, "update_every_grads": grads}
        optimizer = _optimizer(ADAM, backend, fused=True, max_grad_norm=1.0, **turns)
        scaler = _scaler(cls, all_params(optimizer)[0].device.type)
        for number in range(1, 7):
            set_gradients(optimizer.param_groups, number)
            if number in (2, 5):
                next(p for p in all_params(optimizer) if p.numel()).grad[0] = torch.inf
            scaler.step(optimizer)
            assert bool(optimizer.last_step.skipped) == (number in (2, 5))
            scaler.update()
        sides.append(optimizer)
    assert_same_optimizers(*sides)


def test_the_norm_of_a_step_counts_no_gradient_that_waits() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    groups = [{"params": [p], "update_every": 2}, {"params": [q], "role": "head", "lr": 1.0}]
    ours, scaler = sf.StackelbergSGD(groups, lr=1.0, max_grad_norm=100.0), _scaler(sf.GradScaler)
    p.grad, q.grad = torch.full_like(p, 7.0 * SCALE), torch.tensor([3.0, 4.0]) * SCALE
    scaler.step(ours)
    assert [float(n) for n in ours.last_step.grad_norm.values()] == [0.0, 5.0, 5.0]


@by_fused
@by_backend
def test_gradients_are_neither_written_nor_read_twice(backend: str, fused: bool | None) -> None:
    ours = _optimizer(ADAM, backend, fused=fused, max_grad_norm=1.0)
    scaler = _scaler(sf.GradScaler, all_params(ours)[0].device.type)
    set_gradients(ours.param_groups, 1)
    before = [(p.grad.clone(), p.grad._version) for p in all_params(ours)]
    scaler.step(ours)
    for p, (value, version) in zip(all_params(ours), before, strict=True):
        assert_same_bits(p.grad, value)
        assert p.grad._version == version
    assert ours.launches == (0 if backend == "reference" else 2)


@by_fused
@by_backend
def test_without_a_limit_no_norms_are_reported(backend: str, fused: bool | None) -> None:
    ours = _optimizer(ADAM, backend, fused=fused)
    _train(sf.GradScaler, ours)
    report = ours.last_step
    assert report.grad_norm is None
    assert report.clip_factor is None
    assert not bool(report.skipped)


@pytest.mark.filterwarnings("ignore:.*not in the flat buffer:UserWarning")
@pytest.mark.parametrize("grads", ["gather", "flat"])
@by_backend
def test_a_skipped_step_moves_nothing_and_clears(backend: str, grads: str) -> None:
    ours = _optimizer(ADAM, backend, grads=grads, ema_decay=0.9, max_grad_norm=1.0)
    scaler = _scaler(sf.GradScaler, all_params(ours)[0].device.type)
    for number in (1, 2):
        set_gradients(ours.param_groups, number)
        scaler.step(ours)
        scaler.update()
    params = [p for p in all_params(ours) if p.numel()]
    set_gradients(ours.param_groups, 3)
    params[-1].grad[-1] = torch.nan
    before = Snapshot(ours)
    launches = ours.launches
    scaler.step(ours, zero_grad=True)
    ours.launches = launches
    assert bool(ours.last_step.skipped)
    left = [p.grad for p in params]
    assert all(grad is None or not grad.any() for grad in left)
    assert all((grad is None) == (grads == "gather") for grad in left)
    set_gradients(ours.param_groups, 3)
    params[-1].grad[-1] = torch.nan
    before.assert_unchanged(versions=False)


def test_several_tables_agree() -> None:
    dtypes = (torch.float32, torch.float64)
    params = [nn.Parameter(normal(5, i, dtype)) for i, dtype in enumerate(dtypes)]
    with pytest.warns(UserWarning, match="reference"):
        ours = sf.StackelbergSGD(params, lr=1.0, backend="auto", max_grad_norm=1e9)
    values, scaler = [p.detach().clone() for p in params], _scaler(sf.GradScaler)
    for bad in (0, 1):
        for p in params:
            p.grad = torch.full_like(p, SCALE)
        params[bad].grad[2] = torch.inf
        scaler.step(ours)
        scaler.update(SCALE)
        for p, value in zip(params, values, strict=True):
            assert torch.equal(p, value)
    for p in params:
        p.grad = torch.full_like(p, SCALE)
    scaler.step(ours)
    for p, value in zip(params, values, strict=True):
        torch.testing.assert_close(p.detach(), value - 1.0)


def _clip(scaler: Any, optimizer: Any) -> None:
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(all_params(optimizer), 1.0)


@by_fused
@by_backend
def test_unscaled_by_hand_and_clipped(backend: str, fused: bool | None) -> None:
    ours, torchs = (_optimizer(ADAM, backend, fused=fused) for _ in SCALERS)
    scales = _train(sf.GradScaler, ours, between=_clip)
    assert scales == _train(torch.amp.GradScaler, torchs, between=_clip)
    assert_same_optimizers(ours, torchs)


@by_fused
def test_players_are_skipped_each_on_its_own(fused: bool | None) -> None:
    sides = []
    for cls in SCALERS:
        optimizer = _optimizer(ADAM, "cpu", fused=fused, max_grad_norm=1.0)
        players, scaler, scales = [optimizer.player(r) for r in ("head", "body")], _scaler(cls), []
        for number in range(6):
            set_gradients(optimizer.param_groups, number)
            if number % 3 != 2:
                params = [p for p in all_params(players[number % 3]) if p.numel()]
                params[0].grad[0] = torch.inf
            for player in players:
                scaler.step(player)
            scaler.update()
            scales.append(scaler.get_scale())
        sides.append((optimizer, scales))
    assert sides[0][1] == sides[1][1]
    assert_same_optimizers(sides[0][0], sides[1][0])


@by_fused
def test_one_role_of_an_optimizer_is_skipped_for_an_infinity_of_the_other(
    fused: bool | None,
) -> None:
    sides = []
    for cls in SCALERS:
        optimizer, scaler = _optimizer(ADAM, "cpu", fused=fused), _scaler(cls)
        for number in range(4):
            set_gradients(optimizer.param_groups, number)
            if number == 2:
                next(p for p in all_params(optimizer.player("body")) if p.numel()).grad[0] = (
                    torch.inf
                )
            scaler.step(optimizer, role="head")
            scaler.update()
        sides.append((optimizer, scaler.get_scale()))
    assert sides[0][1] == sides[1][1]
    assert_same_optimizers(sides[0][0], sides[1][0])


def test_several_optimizers_under_one_scaler_one_of_them_torchs() -> None:
    found = []
    for cls, kind in zip(SCALERS, (sf.StackelbergAdamW, torch.optim.AdamW), strict=True):
        params = [nn.Parameter(normal(9, i)) for i in range(3)]
        own = [
            kind([params[0]], lr=0.1),
            kind([params[1]], lr=0.2),
            torch.optim.SGD([params[2]], 0.1),
        ]
        scaler, scales = _scaler(cls), []
        for number in range(8):
            for i, optimizer in enumerate(own):
                _set_gradients(optimizer, 1, scaler.get_scale())
                params[i].grad = normal(9, 10 * number + i) * scaler.get_scale()
            if number % 4 < 3:
                params[number % 4].grad[4] = torch.nan
            for optimizer in own:
                scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            if cls is sf.GradScaler:
                skipped = [bool(o.last_step.skipped) for o in own[:2]]
                assert skipped == [number % 4 == 0, number % 4 == 1]
        found.append((params, scales))
    assert found[0][1] == found[1][1]
    for p, q in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)


def _train_by_closures(mode: str, by: str, scaled: bool) -> Any:
    """Four steps, of which the second finds infinities, or is left out where nothing scales."""
    p, q = nn.Parameter(normal(4, 1)), nn.Parameter(normal(4, 2))
    groups = [{"params": [p]}, {"params": [q], "role": "head"}]
    ours = sf.StackelbergAdamW(groups, lr=0.1, mode=mode, max_grad_norm=1.0)
    scaler = sf.GradScaler("cpu", init_scale=SCALE, growth_interval=1000, enabled=scaled)
    factor = 1.0

    def closure() -> torch.Tensor:
        ours.zero_grad()
        loss = (p * q).square().sum() * factor
        scaler.scale(loss).backward()
        return loss.detach()

    for number in range(4):
        is_bad = number == 1
        factor = torch.inf if is_bad else 1.0
        if not scaled:
            if not is_bad:
                ours.step(closure)
            continue
        step = partial(scaler.step, ours)
        loss = step(closure) if by == "position" else step(closure=closure)
        assert bool(ours.last_step.skipped) == is_bad
        assert bool(loss.isfinite()) != is_bad
        scaler.update()
    assert scaler.get_scale() == (SCALE / 2 if scaled else 1.0)
    return ours


@pytest.mark.parametrize("by", ["position", "keyword"])
@pytest.mark.parametrize("mode", ["simultaneous", "alternating"])
def test_closures(mode: str, by: str) -> None:
    """torch's scaler has no use for them; here infinities are looked for in what they leave."""
    assert_same_optimizers(*(_train_by_closures(mode, by, scaled) for scaled in (True, False)))


@by_fused
def test_alternating_steps(fused: bool | None) -> None:
    found = []
    for cls in SCALERS:
        torch.manual_seed(0)
        body, head = nn.Linear(3, 4), nn.Linear(4, 2)
        groups = [{"params": body.parameters()}, {"params": head.parameters(), "role": "head"}]
        ours, scaler = sf.StackelbergAdamW(groups, lr=0.1, fused=fused), _scaler(cls)
        for number in range(4):
            inputs = normal((5, 3), number) * (torch.inf if number == 2 else 1.0)
            targets = normal((5, 2), 9 + number)
            sf.alternating_step(
                body, head, nn.functional.mse_loss, ours, inputs, targets, 2, scaler=scaler
            )
        found.append((ours, scaler.get_scale()))
    assert found[0][1] == found[1][1]
    assert_same_optimizers(found[0][0], found[1][0])


def test_disabled() -> None:
    found = []
    for cls in SCALERS:
        p = nn.Parameter(torch.ones(3))
        ours, scaler = sf.StackelbergSGD([p], lr=1.0), cls("cpu", enabled=False)
        scaler.scale((p * 2).sum()).backward()
        scaler.unscale_(ours)
        scaler.step(ours)
        scaler.update()
        assert scaler.state_dict() == {}
        found.append(p.tolist())
    assert found == [[-1.0] * 3] * 2


def test_state_dicts_load_either_way() -> None:
    for saves, loads in (SCALERS, SCALERS[::-1]):
        ours = _optimizer(ADAM, "cpu")
        scaler = _scaler(saves)
        for number in (1, 3, 4):
            _set_gradients(ours, number, scaler.get_scale())
            scaler.step(ours)
            scaler.update()
        other = loads("cpu")
        other.load_state_dict(scaler.state_dict())
        assert other.state_dict() == scaler.state_dict()
        assert other.get_scale() == SCALE / 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies(copied: Any) -> None:
    scaler = copied(_scaler(sf.GradScaler))
    p = nn.Parameter(torch.ones(3))
    ours = sf.StackelbergSGD([p], lr=1.0)
    scaler.scale(p.sum()).backward()
    scaler.step(ours)
    assert p.tolist() == [0.0] * 3


@by_fused
def test_what_torchs_scaler_refuses(fused: bool | None) -> None:
    p = nn.Parameter(torch.ones(3))
    ours = sf.StackelbergSGD([p], lr=1.0, fused=fused)
    with pytest.raises(AssertionError, match="_scale is None"):
        sf.GradScaler("cpu").step(ours)
    scaler = _scaler(sf.GradScaler)
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(ours)
    p.grad = torch.ones(3)
    scaler.step(ours)
    with pytest.raises(RuntimeError, match=r"step\(\) has already been called"):
        scaler.step(ours)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) is being called after step"):
        scaler.unscale_(ours)
    scaler.update()
    scaler.step(ours)


def test_a_step_that_raises_may_be_taken_again() -> None:
    p = nn.Parameter(torch.ones(3))
    ours, scaler = sf.StackelbergSGD([p], lr=1.0), _scaler(sf.GradScaler)
    scaler.scale(p.sum()).backward()
    ours.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="lr"):
        scaler.step(ours)
    ours.param_groups[0]["lr"] = 1.0
    scaler.step(ours)
    assert p.tolist() == [0.0] * 3
    p.grad = torch.ones(3)
    ours.step()  # without the scaler
    assert p.tolist() == [-1.0] * 3
    assert ours.last_step.skipped is None


@pytest.mark.parametrize("player", [False, True])
def test_a_scale_of_the_optimizers_own_is_multiplied(player: bool) -> None:
    p = nn.Parameter(torch.ones(3))
    ours, scaler = sf.StackelbergSGD([p], lr=1.0, fused=True), _scaler(sf.GradScaler)
    stepped = ours.player("body") if player else ours
    stepped.grad_scale = torch.tensor(4.0)
    p.grad = torch.full_like(p, 4.0 * SCALE)
    scaler.step(stepped)
    assert p.tolist() == [0.0] * 3
    assert getattr(stepped, "grad_scale", None) is None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_differentiable_steps_take_torchs_way() -> None:
    p = torch.ones(3, requires_grad=True).clone()
    ours = sf.StackelbergSGD([p], lr=1.0, differentiable=True)
    scaler = _scaler(sf.GradScaler)
    p.grad = torch.full_like(p, SCALE)
    scaler.step(ours)
    assert p.tolist() == [0.0] * 3
    assert p.grad.tolist() == [1.0] * 3


@pytest.mark.filterwarnings("ignore:.*has been overridden after learning rate:UserWarning")
def test_a_rate_schedule_hooks_and_wrapped_steps_see_the_step() -> None:
    p, seen = nn.Parameter(torch.ones(3)), []
    ours, scaler = sf.StackelbergSGD([p], lr=1.0), _scaler(sf.GradScaler)
    schedule = torch.optim.lr_scheduler.StepLR(ours, 1, 0.5)
    ours.register_step_pre_hook(lambda *_: seen.append("hook"))
    inner = ours.step
    ours.step = lambda *args, **how: (seen.append("wrapper"), inner(*args, **how))[1]
    p.grad = torch.full_like(p, SCALE)
    scaler.step(ours, None)  # as Accelerate calls it
    schedule.step()
    assert seen == ["wrapper", "hook"]
    assert p.tolist() == [0.0] * 3


def test_a_torch_that_keeps_its_scalers_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the scaler goes torch's way."""
    monkeypatch.setattr("stackelberg_fused.optimizers.grad_scaler.scaler_record", lambda *_: None)
    ours, torchs = (_optimizer(ADAM, "cpu") for _ in SCALERS)
    assert _train(sf.GradScaler, ours) == _train(torch.amp.GradScaler, torchs)
    assert_same_optimizers(ours, torchs)


def test_a_torch_that_cannot_be_told_of_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.amp.GradScaler, "_unscale_grads_")
    sf.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="process_group"):
        sf.GradScaler("cpu", process_group=object())
