"""Who unscales: the gradient scaler, as with torch's optimizers, or the step, with `fused=True`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import normal
from torch import nn

import stackelberg_fused as sf

CLASSES = {
    torch.optim.Adam: sf.StackelbergAdam,
    torch.optim.AdamW: sf.StackelbergAdamW,
    torch.optim.SGD: sf.StackelbergSGD,
}
by_class = pytest.mark.parametrize("torchs", CLASSES, ids=lambda cls: cls.__name__)
by_fused = pytest.mark.parametrize("fused", [None, False, True])
FLAG = "_step_supports_amp_scaling"


class Forwarding:
    """A wrapper, as many trainers have one, that passes on what it does not know."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["optimizer"], name)

    def step(self, *args: Any, **how: Any) -> Any:
        return self.optimizer.step(*args, **how)


def _scaler(scale: float = 1024.0) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.zeros(()))  # creates its tensors
    return scaler


@by_fused
@by_class
def test_the_flag_is_torchs(torchs: Any, fused: bool | None) -> None:
    sides = [
        cls([nn.Parameter(torch.ones(3))], lr=0.1, fused=fused) for cls in (torchs, CLASSES[torchs])
    ]
    assert [getattr(side, FLAG, False) for side in sides] == [bool(fused)] * 2
    assert getattr(sides[1].player("body"), FLAG) == bool(fused)


@by_fused
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_keep_the_flag(copied: Any, fused: bool | None) -> None:
    again = copied(sf.StackelbergAdamW([nn.Parameter(torch.ones(3))], fused=fused))
    assert getattr(again, FLAG, False) == bool(fused)


@by_fused
def test_a_loaded_state_dict_does_not_change_the_flag(fused: bool | None) -> None:
    other, ours = (
        sf.StackelbergAdamW([nn.Parameter(torch.ones(3))], fused=f) for f in (not fused, fused)
    )
    ours.load_state_dict(other.state_dict())
    assert getattr(ours, FLAG, False) == bool(fused)
    assert ours.param_groups[0]["fused"] == fused


@by_class
@by_fused
def test_the_constructor_decides_and_no_group(torchs: Any, fused: bool | None) -> None:
    for cls in (torchs, CLASSES[torchs]):
        group = {"params": [nn.Parameter(torch.ones(3))], "fused": not fused}
        optimizer = cls([group], lr=0.1, fused=fused)
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "fused": not fused})
        assert getattr(optimizer, FLAG, False) == bool(fused)


@pytest.mark.parametrize("name", ["foreach", "differentiable"])
@by_class
def test_what_fused_does_not_go_with(torchs: Any, name: str) -> None:
    for cls in (torchs, CLASSES[torchs]):
        with pytest.raises(RuntimeError, match="fused"):
            cls([nn.Parameter(torch.ones(3))], lr=0.1, fused=True, **{name: True})


@pytest.mark.parametrize("gradient", [1.0, torch.inf])
@by_class
def test_within_a_wrapper_that_forwards(torchs: Any, gradient: float) -> None:
    """The scaler sets its attributes on the wrapper, where no optimizer would find them."""
    found = []
    for cls in (torchs, CLASSES[torchs]):
        p = nn.Parameter(torch.ones(4))
        wrapper, scaler = Forwarding(cls([p], lr=0.1)), _scaler()
        scaler.scale((p * gradient).sum()).backward()
        scaler.step(wrapper)
        scaler.update()
        found.append((p.detach(), p.grad, torch.tensor(scaler.get_scale())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("grads", ["gather", "flat"])
@by_backend
def test_gradients_are_unscaled_after_the_step(backend: str, grads: str) -> None:
    instance, device = chosen(backend)
    p = nn.Parameter(torch.ones(4, device=device))
    ours = sf.StackelbergAdamW([p], backend=instance, grads=grads)
    scaler = torch.amp.GradScaler(p.device.type, init_scale=1024.0)
    scaler.scale(p.sum()).backward()
    scaler.step(ours)
    assert p.grad.tolist() == [1.0] * 4


def test_gradients_keep_their_scale_in_a_fused_step() -> None:
    """Unlike torch's fused step, which writes them back; see docs/differences.md."""
    p, scaler = nn.Parameter(torch.ones(4)), _scaler()
    ours = sf.StackelbergAdamW([p], fused=True)
    scaler.scale(p.sum()).backward()
    scaler.step(ours)
    assert p.grad.tolist() == [1024.0] * 4


@pytest.mark.parametrize("fused", [None, True])
def test_what_a_skipped_step_leaves(fused: bool | None) -> None:
    p, scaler = nn.Parameter(torch.ones(4)), _scaler()
    ours = sf.StackelbergSGD([p], lr=0.1, momentum=0.9, max_grad_norm=1e9, fused=fused)
    p.grad = torch.ones(4)
    ours.step()
    before = p.detach().clone(), ours.state[p]["momentum_buffer"].clone()
    scaler.scale((p * torch.inf).sum()).backward()
    scaler.step(ours, zero_grad=True)
    scaler.update()
    assert torch.equal(p, before[0])
    assert torch.equal(ours.state[p]["momentum_buffer"], before[1])
    assert float(ours.state[p]["step"]) == 1
    assert scaler.get_scale() == 512.0
    report = ours.last_step
    if fused:
        assert bool(report.skipped)
        assert p.grad is None
    else:  # nobody called the step: the report is of the one before, and the gradient is still there
        assert report.skipped is None
        assert float(report.grad_norm["total"]) == 2.0
        assert bool(p.grad.isinf().all())


@pytest.mark.parametrize("fused", [None, True])
def test_a_first_step_that_is_skipped_allocates_no_momentum_that_counts(fused: bool | None) -> None:
    sides = []
    for cls, how in ((torch.optim.SGD, None), (sf.StackelbergSGD, fused)):
        p, scaler = nn.Parameter(torch.ones(4)), _scaler()
        optimizer = cls([p], lr=0.1, momentum=0.9, dampening=0.5, fused=how)
        for factor in (torch.inf, 1.0, 2.0):
            optimizer.zero_grad()
            scaler.scale((p * factor).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        sides.append(p.detach())
    torch.testing.assert_close(*sides)


@by_class
def test_float16_gradients_as_torch(torchs: Any) -> None:
    """torch's scaler unscales none of them; with `fused=True` it leaves that to the step."""
    for cls in (torchs, CLASSES[torchs]):
        for fused in (None, True):
            p, scaler = nn.Parameter(torch.ones(4, dtype=torch.float16)), _scaler(8.0)
            optimizer = cls([p], lr=0.1, fused=fused)
            p.grad = torch.full_like(p, 8.0)
            if fused:
                scaler.step(optimizer)
                assert p[0] < 1.0
                continue
            with pytest.raises(ValueError, match="FP16"):
                scaler.step(optimizer)
            assert p[0] == 1.0


@by_fused
@pytest.mark.parametrize("limit", [0.5, {"body": 0.25, "head": 2.0}])
def test_clipped_as_torch_clips_what_was_unscaled(limit: Any, fused: bool | None) -> None:
    values, found = [normal((5, 3), 1), normal(7, 2)], []
    for cls in (torch.optim.AdamW, sf.StackelbergAdamW):
        params, scaler = [nn.Parameter(v.clone()) for v in values], _scaler()
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        if cls is torch.optim.AdamW:
            optimizer = cls(groups, lr=0.1)
        else:
            groups[1].update(role="head", lr=0.1)
            optimizer = cls(groups, lr=0.1, max_grad_norm=limit, fused=fused)
        for number in range(3):
            optimizer.zero_grad()
            loss = sum((p * normal(tuple(p.shape), 9 + number)).sum() for p in params)
            scaler.scale(loss).backward()
            if cls is torch.optim.AdamW:
                scaler.unscale_(optimizer)
                if isinstance(limit, dict):
                    for p, norm in zip(params, limit.values(), strict=True):
                        nn.utils.clip_grad_norm_([p], norm)
                else:
                    nn.utils.clip_grad_norm_(params, limit)
            scaler.step(optimizer)
            scaler.update()
        found.append(params)
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q)
