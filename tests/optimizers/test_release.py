"""release="backward": the bits of the ordinary step, for every rule, scheme and option that goes with it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import MIXED, OURS, Options, groups_of, kernel_options, normal, sizes_for
from checks import all_params, assert_same_bits, assert_same_optimizers
from named_schemes import NAMED
from releasing import backward, gradients_of, pair_of, take_steps
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

pytestmark = pytest.mark.usefixtures("small_batches")
OPTIONS = [*kernel_options(), MIXED]
if is_interpreting():
    OPTIONS = OPTIONS[::5]


@by_backend
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_rule_gives_the_bits_of_the_ordinary_step(options: Options, backend: str) -> None:
    chosen_backend, device = chosen(backend)
    groups = groups_of(sizes_for(5), device, mixed=options.mixed)
    ours, ordinary = pair_of(options.ours, groups, backend=chosen_backend)
    take_steps(ours, ordinary, range(3), skip_every=4)
    assert_same_optimizers(ours, ordinary)
    if ours.backend != "reference":
        assert ours.last_step.launches > 1
        assert ours.launches > 3


@by_backend
@pytest.mark.parametrize("name", NAMED)
def test_every_scheme_gives_the_bits_of_the_ordinary_step(name: str, backend: str) -> None:
    chosen_backend, device = chosen(backend)
    named = NAMED[name]
    groups = groups_of([[4097, 100], [64], [4500, 33]], device, dtype=named.scheme.param)
    ours, ordinary = pair_of(
        sf.StackelbergAdamW, groups, backend=chosen_backend, **named.settings, float32_state="none"
    )
    take_steps(ours, ordinary, range(3))
    assert_same_optimizers(ours, ordinary)


GROUP_OPTIONS: dict[str, dict[str, Any]] = {
    "average": {"ema_decay": 0.9},
    "average of the head": {"ema_decay": {"head": 0.5}},
    "turns": {"update_every": {"body": 3}},
    "turns by the mean": {"update_every": {"body": 2, "head": 3}, "update_every_grads": "mean"},
    "box": {"constraint": sf.Box(-0.5, 0.5)},
    "not negative": {"constraint": {"head": sf.NonNegative()}},
    "ball": {"constraint": {"body": sf.L2Ball(2.0)}},
    "balls": {"constraint": sf.L2Ball(2.0), "ema_decay": 0.9},
    "not moved into arenas": {"flatten": False},
}


@by_backend
@pytest.mark.parametrize("name", GROUP_OPTIONS)
def test_every_option_gives_the_bits_of_the_ordinary_step(name: str, backend: str) -> None:
    chosen_backend, device = chosen(backend)
    groups = groups_of([[4097, 17, 0], [63, 4096], [1, 3000]], device)
    ours, ordinary = pair_of(
        sf.StackelbergAdamW, groups, backend=chosen_backend, **GROUP_OPTIONS[name]
    )
    take_steps(ours, ordinary, range(7), skip_every=3)
    assert_same_optimizers(ours, ordinary)


@pytest.mark.parametrize("how", ["turns", "turns by the mean"])
def test_groups_wait_with_parameters_in_several_tables(how: str) -> None:
    """Float64 parameters are the reference's: they lie in a table of their own, and wait with the others."""
    groups = groups_of([[3000, 17], [3000]])
    groups[0]["params"].append(nn.Parameter(normal(2000, 5, torch.float64)))
    ours, ordinary = pair_of(sf.StackelbergAdam, groups, **GROUP_OPTIONS[how])
    take_steps(ours, ordinary, range(7), skip_every=3)
    assert_same_optimizers(ours, ordinary)
    assert ours.backend == ordinary.backend


def test_a_simplex_moves_in_step() -> None:
    groups = [
        {"params": [nn.Parameter(torch.full((50, 8), 0.125))], "constraint": sf.Simplex()},
        {"params": [nn.Parameter(normal(3000, 1)), nn.Parameter(normal(3000, 2))], "role": "head"},
    ]
    ours, ordinary = pair_of(sf.StackelbergAdam, groups)
    take_steps(ours, ordinary, range(3))
    assert_same_optimizers(ours, ordinary)
    groups[1]["constraint"] = ordinary.param_groups[1]["constraint"] = sf.L2Ball(1.0)
    take_steps(ours, ordinary, range(3, 6))
    assert_same_optimizers(ours, ordinary)


@pytest.mark.parametrize("layout", ["transposed gradient", "gaps", "half precision gradient"])
def test_gradients_and_parameters_of_other_layouts(layout: str) -> None:
    params = [nn.Parameter(normal((70, 60), i)) for i in range(4)]
    if layout == "gaps":
        params[1] = nn.Parameter(normal((70, 120), 1)[:, ::2])
    ours, ordinary = pair_of(sf.StackelbergAdam, [{"params": params}])
    for number in range(3):
        gradients = [normal((60, 70), 10 * number + i).t() for i in range(4)]
        for optimizer in (ours, ordinary):
            backward(all_params(optimizer), gradients)
            optimizer.step()
            optimizer.zero_grad()
    assert_same_optimizers(ours, ordinary)


@pytest.mark.parametrize("rule", OURS)
def test_as_torchs_recipe_of_one_optimizer_per_parameter(rule: str) -> None:
    """https://pytorch.org/tutorials/intermediate/optimizer_step_in_backward_tutorial.html"""
    torchs_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    models = [_model() for _ in range(2)]
    ours = OURS[rule](models[0].parameters(), lr=1e-2, release="backward", backend="reference")
    of_each = {p: torchs_class[rule]([p], lr=1e-2, foreach=False) for p in models[1].parameters()}

    def step_of_one(param: torch.Tensor) -> None:
        of_each[param].step()
        of_each[param].zero_grad()

    for param in of_each:
        param.register_post_accumulate_grad_hook(step_of_one)
    for number in range(3):
        for model in models:
            model(normal((4, 40), number)).square().sum().backward()
        ours.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_same_bits(p, q)


def _model(layers: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(40, 40) for _ in range(layers)))


def test_gradients_are_freed_while_the_backward_pass_runs() -> None:
    model = _model(20)
    sf.StackelbergAdamW([torch.zeros(1, requires_grad=True)])  # loads what is loaded once
    optimizer = sf.StackelbergAdamW(model.parameters(), release="backward")
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def look(param: torch.Tensor) -> None:
        nonlocal most
        if param.grad is not None:
            alive.append(weakref.ref(param.grad))
        held = [grad for ref in alive if (grad := ref()) is not None]
        most = max(most, sum(4 * grad.numel() for grad in held))

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(look)
    for number in range(3):
        model(normal((4, 40), number)).sum().backward()
        optimizer.step()
        assert all(p.grad is None for p in model.parameters())
        assert all(ref() is None for ref in alive)
    # one batch, the gradient that completes it, and those of a layer
    assert most <= 8000 + 2 * 4 * 40 * 41


def test_parameters_move_within_the_backward_pass_and_count_with_step() -> None:
    model = _model(7)
    optimizer = sf.StackelbergAdamW(model.parameters(), release="backward")
    before = [p.detach().clone() for p in model.parameters()]
    observed = []
    optimizer.register_step_post_hook(lambda *_: observed.append(optimizer.launches))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model(normal((4, 40), 1)).sum().backward()
    moved = [not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
    assert any(moved)
    assert not all(moved)
    assert optimizer.launches == 0
    optimizer.step()
    scheduler.step()
    assert optimizer.launches == optimizer.last_step.launches > 1
    assert len(observed) == 1
    assert {float(optimizer.state[p]["step"]) for p in model.parameters()} == {1.0}


def test_settings_edited_after_the_backward_pass_are_those_of_the_next_step() -> None:
    groups = groups_of([[3000, 17, 3000], [3000, 5]])
    ours, ordinary = pair_of(sf.StackelbergAdamW, groups)
    for number in range(4):
        gradients = gradients_of(ordinary.param_groups, number)
        backward(all_params(ordinary), gradients)
        ordinary.step()
        ordinary.zero_grad()
        backward(all_params(ours), gradients)
        for optimizer in (ours, ordinary):
            optimizer.param_groups[0]["lr"] *= 0.5
            optimizer.param_groups[1]["weight_decay"] += 0.1
        ours.step()
    assert_same_optimizers(ours, ordinary)


def test_a_weight_that_is_used_twice_moves_once() -> None:
    shared = nn.Parameter(normal((50, 50), 1))
    others = [nn.Parameter(normal((50, 50), i)) for i in (2, 3)]
    ours, ordinary = pair_of(sf.StackelbergAdam, [{"params": [shared, *others]}])
    for optimizer in (ours, ordinary):
        a, b, c = all_params(optimizer)
        (normal((2, 50), 4) @ a @ b @ a @ c).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same_optimizers(ours, ordinary)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers(use_reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    models = [_model() for _ in range(2)]
    ours = sf.StackelbergAdamW(models[0].parameters(), release="backward")
    ordinary = sf.StackelbergAdamW(models[1].parameters())
    for number in range(2):
        for model, optimizer in zip(models, (ours, ordinary), strict=True):
            x = normal((4, 40), number).requires_grad_()
            for layer in model:
                x = checkpoint(layer, x, use_reentrant=use_reentrant)
            x.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same_optimizers(ours, ordinary)
