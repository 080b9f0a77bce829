"""`sf.GradScaler` in training loops: clipping by hand, players, several optimizers, closures, copies, refusals."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from backends import by_backend, optimizer_by
from cases import normal, set_gradients
from checks import all_params, assert_same_optimizers
from scaled import (
    ADAM,
    SCALE,
    SCALERS,
    by_fused,
    new_scaler,
    set_scaled_gradients,
    train_scaled,
)
from tolerances import SEVERAL_STEPS
from torch import nn

import stackelberg_fused as sf


def _clip(scaler: Any, optimizer: Any) -> None:
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(all_params(optimizer), 1.0)


@by_fused
@by_backend
def test_unscaled_by_hand_and_clipped(backend: str, fused: bool | None) -> None:
    ours, torchs = (optimizer_by(ADAM, backend, fused=fused) for _ in SCALERS)
    scales = train_scaled(sf.GradScaler, ours, between=_clip)
    assert scales == train_scaled(torch.amp.GradScaler, torchs, between=_clip)
    assert_same_optimizers(ours, torchs)


@by_fused
def test_players_are_skipped_each_on_its_own(fused: bool | None) -> None:
    sides = []
    for cls in SCALERS:
        optimizer = optimizer_by(ADAM, "cpu", fused=fused, max_grad_norm=1.0)
        players, scaler, scales = (
            [optimizer.player(r) for r in ("head", "body")],
            new_scaler(cls),
            [],
        )
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
        optimizer, scaler = optimizer_by(ADAM, "cpu", fused=fused), new_scaler(cls)
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
        scaler, scales = new_scaler(cls), []
        for number in range(8):
            for i, optimizer in enumerate(own):
                set_scaled_gradients(optimizer, 1, scaler.get_scale())
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
        ours, scaler = sf.StackelbergAdamW(groups, lr=0.1, fused=fused), new_scaler(cls)
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
        ours = optimizer_by(ADAM, "cpu")
        scaler = new_scaler(saves)
        for number in (1, 3, 4):
            set_scaled_gradients(ours, number, scaler.get_scale())
            scaler.step(ours)
            scaler.update()
        other = loads("cpu")
        other.load_state_dict(scaler.state_dict())
        assert other.state_dict() == scaler.state_dict()
        assert other.get_scale() == SCALE / 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies(copied: Any) -> None:
    scaler = copied(new_scaler(sf.GradScaler))
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
    scaler = new_scaler(sf.GradScaler)
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
    ours, scaler = sf.StackelbergSGD([p], lr=1.0), new_scaler(sf.GradScaler)
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
    ours, scaler = sf.StackelbergSGD([p], lr=1.0, fused=True), new_scaler(sf.GradScaler)
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
    scaler = new_scaler(sf.GradScaler)
    p.grad = torch.full_like(p, SCALE)
    scaler.step(ours)
    assert p.tolist() == [0.0] * 3
    assert p.grad.tolist() == [1.0] * 3


@pytest.mark.filterwarnings("ignore:.*has been overridden after learning rate:UserWarning")
def test_a_rate_schedule_hooks_and_wrapped_steps_see_the_step() -> None:
    p, seen = nn.Parameter(torch.ones(3)), []
    ours, scaler = sf.StackelbergSGD([p], lr=1.0), new_scaler(sf.GradScaler)
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
    ours, torchs = (optimizer_by(ADAM, "cpu") for _ in SCALERS)
    assert train_scaled(sf.GradScaler, ours) == train_scaled(torch.amp.GradScaler, torchs)
    assert_same_optimizers(ours, torchs)


def test_a_torch_that_cannot_be_told_of_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.amp.GradScaler, "_unscale_grads_")
    sf.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="process_group"):
        sf.GradScaler("cpu", process_group=object())
