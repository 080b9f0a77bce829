"""`replace`: what takes a parameter's place in names, groups, players, buffers and files, and that the old one goes."""

from __future__ import annotations

import pickle
import resource
import weakref
from typing import Any

import pytest
import torch
from cases import step
from checks import all_params, assert_same_bits, assert_same_optimizers
from replaced_rows import ADAM, NARROW, ROWS, WIDTH, optimizer_of, replace
from torch import Tensor, nn

import stackelberg_fused as sf


def test_it_has_the_place_of_the_old_one() -> None:
    """Its name, its group, its player, its rate, and a place in an arena."""
    model = nn.ModuleDict({"points": nn.Linear(3, 6, bias=False), "head": nn.Linear(3, 6)})
    ours = ADAM(sf.split_body_head(model, head="head"), lr=0.1, head_lr_ratio=5.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(ours, 0.5)
    step(ours)
    lists = [group["params"] for group in ours.param_groups]
    names = [list(group["param_names"]) for group in ours.param_groups]
    new = replace(ours, [1, 0])
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
    ours = optimizer_of("Adam")
    step(ours)
    old, mine = all_params(ours)[0], torch.tensor(5.0)
    ours.state[old]["step"] = mine
    step(ours, seed=1)
    new = replace(ours)
    step(ours, seed=2)
    assert ours.state[new]["step"] is mine
    assert float(mine) == 7.0


def test_by_a_player() -> None:
    ours = optimizer_of("Adam")
    step(ours)
    head = all_params(ours)[2]
    new = nn.Parameter(torch.ones(2))
    ours.player("head").replace(head, new, [3, 3])
    assert ours.param_groups[1]["params"] == [new]
    with pytest.raises(ValueError, match="'body'"):
        ours.player("body").replace(new, nn.Parameter(torch.ones(2)))


def test_flat_gradients_have_a_place_for_it() -> None:
    ours, twin = optimizer_of("Adam", grads="flat"), optimizer_of("Adam")
    for optimizer in (ours, twin):
        sum(p.square().sum() for p in all_params(optimizer)).backward()
        optimizer.step()
    kept = all_params(ours)[2].grad.clone()
    old = all_params(ours)[0]
    new, _ = replace(ours), replace(twin)
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
    ours, twin = optimizer_of("Adam", release="backward"), optimizer_of("Adam")

    def train(optimizer: Any) -> None:
        sum(p.square().sum() for p in all_params(optimizer)).backward()
        optimizer.step()
        optimizer.zero_grad()

    for optimizer in (ours, twin):
        train(optimizer)
        replace(optimizer)
        train(optimizer)
    assert_same_optimizers(ours, twin)
    assert all(p.grad is None for p in all_params(ours))
    all_params(ours)[0].sum().backward()
    with pytest.raises(
        RuntimeError, match=r"parameter 0 of param group 0 .*step\(\), or zero_grad"
    ):
        replace(ours, [0])
    ours.zero_grad()
    replace(ours, [0])


def test_alternating() -> None:
    ours = optimizer_of("Adam", mode="alternating")

    def closure() -> Tensor:
        ours.zero_grad()
        loss = torch.stack([p.square().sum() for p in all_params(ours)]).sum()
        loss.backward()
        return loss

    ours.step(closure)
    new = replace(ours)
    ours.step(closure)
    assert float(ours.state[new]["step"]) == 2.0


def test_written_and_read_afterwards() -> None:
    ours = optimizer_of("float32 master")
    step(ours)
    replace(ours)
    read = pickle.loads(pickle.dumps(ours))
    loaded = optimizer_of("float32 master", first=torch.zeros(len(ROWS), WIDTH, dtype=NARROW))
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
