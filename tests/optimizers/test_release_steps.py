"""release="backward": what ends a step and what goes on with it; players, accumulation, copies, errors."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import groups_of, normal
from checks import Snapshot, all_params, assert_same_optimizers
from releasing import SIZES, backward, gradients_of, ordinary_step, pair_of, small_pair, take_steps
from torch import nn

import stackelberg_fused as sf

pytestmark = pytest.mark.usefixtures("small_batches")


# accumulation


def test_microbatches_accumulate_until_the_last_one() -> None:
    ours, ordinary = small_pair()
    for number in range(3):
        parts = [gradients_of(ordinary.param_groups, 10 * number + i) for i in range(3)]
        for optimizer in (ours, ordinary):
            with optimizer.accumulate(), optimizer.accumulate():
                backward(all_params(optimizer), parts[0])
            with optimizer.accumulate():
                backward(all_params(optimizer), parts[1])
            assert all(p.grad is not None for p in all_params(optimizer))
            ordinary_step(optimizer, parts[2])
    assert_same_optimizers(ours, ordinary)
    assert ours.last_step.launches > 1


def test_a_parameter_only_in_earlier_microbatches_moves_at_step() -> None:
    ours, ordinary = small_pair()
    parts = [gradients_of(ordinary.param_groups, i) for i in range(2)]
    parts[1][0] = None
    for optimizer in (ours, ordinary):
        with optimizer.accumulate():
            backward(all_params(optimizer), parts[0])
        ordinary_step(optimizer, parts[1])
    assert_same_optimizers(ours, ordinary)


@pytest.mark.parametrize("first", ["released", "pending"])
def test_a_second_gradient_without_accumulate_is_refused_by_name(first: str) -> None:
    model = nn.Linear(60 if first == "released" else 5, 60)
    optimizer = sf.StackelbergSGD(model.named_parameters(), release="backward")
    x = torch.ones(2, model.in_features)
    model(x).sum().backward()
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"'(bias|weight)'.* second time .*accumulate\(\)"):
        model(x).sum().backward()
    before.assert_unchanged()
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()


def test_accumulation_after_a_release_is_refused() -> None:
    ours, ordinary = small_pair()
    gradients = gradients_of(ordinary.param_groups, 1)
    backward(all_params(ours), gradients)
    with ours.accumulate(), pytest.raises(RuntimeError, match="second time"):
        backward(all_params(ours), gradients)


def test_an_abandoned_backward_pass_was_applied_and_counts_where_it_was() -> None:
    ours, ordinary = pair_of(sf.StackelbergAdamW, groups_of([[17, 3000], [2500, 5]]))
    gradients = gradients_of(ordinary.param_groups, 1)
    before = [p.detach().clone() for p in all_params(ours)]
    backward(all_params(ours), gradients)
    ours.zero_grad()
    moved = [not torch.equal(p, q) for p, q in zip(all_params(ours), before, strict=True)]
    assert any(moved)
    assert not all(moved)
    counts = [float(ours.state[p]["step"]) if ours.state[p] else 0.0 for p in all_params(ours)]
    assert counts == [float(m) for m in moved]
    # torch's counts are of each parameter too
    for p, g, m in zip(all_params(ordinary), gradients, moved, strict=True):
        p.grad = g if m else None
    ordinary.step()
    ordinary.zero_grad()
    take_steps(ours, ordinary, range(2, 4))
    assert_same_optimizers(ours, ordinary)


def test_gradients_set_by_hand_are_stepped() -> None:
    ours, ordinary = small_pair()
    for number in range(2):
        gradients = gradients_of(ordinary.param_groups, number)
        for optimizer in (ours, ordinary):
            for p, g in zip(all_params(optimizer), gradients, strict=True):
                p.grad = g.clone()
            optimizer.step()
        ordinary.zero_grad()
    assert all(p.grad is None for p in all_params(ours))
    assert_same_optimizers(ours, ordinary)


# players


def test_players_stepped_one_after_the_other() -> None:
    ours, ordinary = small_pair()
    for number in range(3):
        gradients = gradients_of(ordinary.param_groups, number)
        for optimizer in (ours, ordinary):
            backward(all_params(optimizer), gradients)
            optimizer.player("head").step()
            optimizer.player("body").step()
            optimizer.zero_grad()
    assert_same_optimizers(ours, ordinary)


def test_steps_of_the_head_alone() -> None:
    ours, ordinary = small_pair()
    for number in range(4):
        gradients = gradients_of(ordinary.param_groups, number)
        for optimizer in (ours, ordinary):
            with optimizer.accumulate(role="body"):
                backward(all_params(optimizer), gradients)
            optimizer.step(role="head")
            optimizer.zero_grad()
    assert_same_optimizers(ours, ordinary)
    take_steps(ours, ordinary, range(4, 6))
    assert_same_optimizers(ours, ordinary)


def _through_pickle(optimizer: Any) -> Any:
    return pickle.loads(pickle.dumps(optimizer))


@pytest.mark.parametrize("copied", [copy.deepcopy, _through_pickle])
def test_copies_release_too(copied: Callable[[Any], Any]) -> None:
    ours, ordinary = small_pair()
    take_steps(ours, ordinary, range(2))
    again = copied(ours)
    take_steps(again, ordinary, range(2, 4))
    assert_same_optimizers(again, ordinary)
    assert again.last_step.launches > 1


def test_state_dicts_are_those_of_the_ordinary_optimizer() -> None:
    ours, ordinary = small_pair()
    take_steps(ours, ordinary, range(2))
    saved = io.BytesIO()
    torch.save(ours.state_dict(), saved)
    saved.seek(0)
    groups = groups_of(SIZES)
    with torch.no_grad():
        for p, q in zip((p for g in groups for p in g["params"]), all_params(ours), strict=True):
            p.copy_(q)
    loaded = sf.StackelbergAdamW(groups, release="backward")
    backward(all_params(loaded), gradients_of(groups, 1))
    with torch.no_grad():
        for p, q in zip(all_params(loaded), all_params(ours), strict=True):
            p.copy_(q)
    loaded.load_state_dict(torch.load(saved))  # gives up the step that was begun
    loaded.zero_grad()
    take_steps(loaded, ordinary, range(2, 4))
    assert_same_optimizers(loaded, ordinary)


def test_groups_added_in_the_midst_of_a_step() -> None:
    ours, ordinary = small_pair()
    more = [nn.Parameter(normal(3000, 7)) for _ in range(2)]
    gradients = gradients_of(ordinary.param_groups, 1)
    for optimizer, new in zip((ours, ordinary), more, strict=True):
        backward(all_params(optimizer), gradients)
        optimizer.add_param_group({"params": [new], "lr": 0.1})
        backward([new], [normal(3000, 8)])
        optimizer.step()
        optimizer.zero_grad()
    take_steps(ours, ordinary, range(2, 4))
    assert_same_optimizers(ours, ordinary)


def test_parameters_that_are_unfrozen_later() -> None:
    groups = groups_of(SIZES)
    groups[0]["params"][0].requires_grad_(False)
    ours, ordinary = pair_of(sf.StackelbergAdamW, groups)
    for number in range(3):
        gradients = gradients_of(ordinary.param_groups, number)
        if not number:
            gradients[0] = None
        for optimizer in (ours, ordinary):
            all_params(optimizer)[0].requires_grad_(number > 0)
            ordinary_step(optimizer, gradients)
    assert_same_optimizers(ours, ordinary)


def test_lazy_modules() -> None:
    models = [nn.Sequential(nn.LazyLinear(50), nn.Linear(50, 50)) for _ in range(2)]
    optimizers = [
        sf.StackelbergAdamW(model.parameters(), release=name)
        for model, name in zip(models, ("backward", None), strict=True)
    ]
    torch.manual_seed(0)
    with torch.no_grad():
        models[0](torch.ones(1, 50))
        models[1](torch.ones(1, 50))
        models[1].load_state_dict(models[0].state_dict())
    for number in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            model(normal((2, 50), number)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same_optimizers(*optimizers)


def test_parameters_that_move_to_another_dtype_before_the_first_step() -> None:
    model = nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50))
    optimizer = sf.StackelbergAdamW(model.parameters(), release="backward")
    model.double()
    model(torch.ones(1, 50, dtype=torch.float64)).sum().backward()
    assert any(p.grad is None for p in model.parameters())
    optimizer.step()
    assert {float(optimizer.state[p]["step"]) for p in model.parameters()} == {1.0}


def test_nothing_is_kept_alive_by_hooks() -> None:
    params = [nn.Parameter(normal(3000, 1))]
    optimizer: Any = sf.StackelbergAdamW(params, release="backward")
    backward(params, [normal(3000, 2)])
    optimizer.step()
    held = weakref.ref(optimizer), weakref.ref(optimizer.state[params[0]]["exp_avg"])
    del optimizer
    gc.collect()
    assert [ref() for ref in held] == [None, None]
    backward(params, [normal(3000, 2)])  # the hook is still there, and does nothing
    assert params[0].grad is not None


def test_parameters_that_leave_their_group_are_let_go() -> None:
    ours, ordinary = small_pair()
    for optimizer in (ours, ordinary):
        del optimizer.param_groups[0]["params"][1:]
    take_steps(ours, ordinary, range(2))
    assert_same_optimizers(ours, ordinary)
    assert len(ours._shared.release._numbers) == 3


def test_a_checkpoint_asks_for_state_without_a_step() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model = nn.Linear(60, 60)
    optimizer = sf.StackelbergAdamW(model.parameters(), release="backward")
    before = model.weight.detach().clone()
    saved = get_optimizer_state_dict(model, optimizer)
    assert torch.equal(model.weight, before)
    assert float(saved["state"]["weight"]["step"]) == 0.0


# errors


def test_a_gradient_that_does_not_fit_raises_within_the_backward_pass() -> None:
    embedding = nn.Embedding(60, 60, sparse=True)
    optimizer = sf.StackelbergAdam([("first", embedding.weight)], release="backward")
    weight = embedding.weight
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"'first'.*sparse gradients go with rule 'sgd' only"):
        embedding(torch.tensor([1, 3])).sum().backward()
    before.assert_unchanged()
    with pytest.raises(RuntimeError, match=r"'first'.*sparse"):
        optimizer.step()
    optimizer.zero_grad()
    (weight * 2).sum().backward()
    optimizer.step()
    assert float(optimizer.state[weight]["step"]) == 1.0


def test_an_edit_that_is_refused_is_refused_within_the_backward_pass() -> None:
    ours, ordinary = small_pair()
    gradients = gradients_of(ordinary.param_groups, 1)
    before = Snapshot(ours)
    ours.param_groups[0]["betas"] = (2.0, 0.9)
    with pytest.raises(ValueError, match=r"param group 0.*beta"):
        backward(all_params(ours), gradients)
    before.assert_unchanged()
    ours.param_groups[0]["betas"] = (0.9, 0.999)
    ours.zero_grad()
    take_steps(ours, ordinary, range(2))
    assert_same_optimizers(ours, ordinary)


def test_a_weight_that_the_graph_still_needs_is_noticed_by_autograd() -> None:
    model = nn.Sequential(*(nn.Linear(60, 60) for _ in range(3)))
    optimizer = sf.StackelbergAdamW(model.parameters(), release="backward")
    loss = model(normal((2, 60), 1).requires_grad_()).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_averages_in_the_place_of_weights_are_refused() -> None:
    ours, ordinary = small_pair(ema_decay=0.9)
    take_steps(ours, ordinary, range(1))
    with (
        ours.ema_weights(),
        pytest.raises(RuntimeError, match="hold their averages"),
    ):
        backward(all_params(ours), gradients_of(ordinary.param_groups, 1))


def test_threads_that_share_an_optimizer_take_turns() -> None:
    ours, ordinary = small_pair()
    for number in range(2):
        gradients = gradients_of(ordinary.param_groups, number)
        thread = threading.Thread(target=ordinary_step, args=(ours, gradients))
        thread.start()
        thread.join()
        ordinary_step(ordinary, gradients)
    assert_same_optimizers(ours, ordinary)
