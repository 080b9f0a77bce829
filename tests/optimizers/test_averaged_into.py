"""Averages written into a module that there is already, with a decay by steps: beside plain torch's loop by hand."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from averages import averages
from backends import by_backend, chosen
from cases import normal
from checks import assert_same_bits
from followers import (
    STEPS,
    adam_of,
    assert_same_state,
    averaged_by_hand,
    backward_of,
    cosine_to_one,
    growing_decay,
    model_with_norm,
    small_model,
    take_step,
)
from imitations import by_wrapper
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.optimizers.averaged_following import Buffers


@by_backend
def test_a_teacher_with_a_cosine_is_as_by_hand(backend: str) -> None:
    instance, device = chosen(backend)
    student = small_model().to(device)
    teacher, by_hand = copy.deepcopy(student), copy.deepcopy(student)
    params = list(teacher.parameters())
    ours = adam_of(student, instance)
    sf.AveragedModule(ours, student, into=teacher, decay=cosine_to_one)
    for number in range(STEPS):
        take_step(student, ours, number)
        averaged_by_hand(by_hand, student, cosine_to_one(number))
        # used by itself, and by whoever holds its parameters
        for mine, expected in zip(params, by_hand.parameters(), strict=True):
            assert not mine.requires_grad
            if backend == "reference":
                assert_same_bits(mine.detach(), expected.detach())
            else:
                torch.testing.assert_close(mine.detach(), expected.detach())
    assert [p.data_ptr() for p in params] == [a.data_ptr() for a in averages(ours)]
    assert not torch.allclose(teacher[0].weight, student[0].weight)
    assert ours.launches == (0 if backend == "reference" else STEPS)


def test_target_networks_with_tau_beside_torchs_optimizer() -> None:
    """The whole loop in plain torch: the same arithmetic, so the same bits."""
    tau, online = 0.05, small_model()
    theirs = copy.deepcopy(online)
    target, by_hand = copy.deepcopy(online), copy.deepcopy(online).requires_grad_(False)
    ours = sf.StackelbergSGD(online.parameters(), lr=0.1, backend="reference")
    torchs = torch.optim.SGD(theirs.parameters(), lr=0.1)
    sf.AveragedModule(ours, online, into=target, decay=1.0 - tau)
    assert [group["ema_decay"] for group in ours.param_groups] == [0.95]
    for number in range(STEPS):
        for model, aim, optimizer in ((online, target, ours), (theirs, by_hand, torchs)):
            states = normal((4, 3), number)
            (model(states) - 0.9 * aim(states) - 1.0).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        averaged_by_hand(by_hand, theirs, 1.0 - tau)
        assert_same_state(online, theirs)
        assert_same_state(target, by_hand)


def test_a_decay_is_set_as_often_as_one_likes() -> None:
    student = small_model()
    by_hand = copy.deepcopy(student)
    groups = [{"params": student.parameters()}, {"params": [nn.Parameter(torch.ones(2))]}]
    ours = sf.StackelbergAdam(groups, lr=0.1, backend="reference", ema_decay=0.5)
    teacher = sf.AveragedModule(ours, student)
    for number in range(STEPS):
        teacher.decay = decay = 0.9 + 0.01 * number
        assert teacher.decay == decay
        take_step(student, ours, number)
        averaged_by_hand(by_hand, student, decay)
        assert_same_state(teacher.module, by_hand)
    assert ours.param_groups[1]["ema_decay"] == 0.5
    wrong: Any
    for wrong, error in ((1.1, ValueError), (math.nan, ValueError), ("high", TypeError)):
        with pytest.raises(error, match=r"AveragedModule: .*decay"):
            teacher.decay = wrong
    assert teacher.decay == decay


def test_several_decays_are_no_one() -> None:
    student = small_model()
    groups = [
        {"params": part.parameters(), "ema_decay": d}
        for part, d in zip(student[::2], (0.5, 0.9), strict=True)
    ]
    teacher = sf.AveragedModule(sf.StackelbergAdam(groups, backend="cpu"), student)
    with pytest.raises(ValueError, match="no one decay"):
        _ = teacher.decay
    with pytest.raises(ValueError, match="no one decay"):
        sf.AveragedModule(sf.StackelbergAdam(groups, backend="cpu"), student, buffers="averaged")


@pytest.mark.parametrize("every", [1, 2])
def test_a_decay_by_steps_goes_on_where_a_run_is_resumed(every: int) -> None:
    def begun() -> tuple[Any, ...]:
        student = small_model()
        teacher = copy.deepcopy(student)
        ours = adam_of(student, update_every=every)
        sf.AveragedModule(ours, student, into=teacher, decay=cosine_to_one)
        return student, teacher, ours

    whole, resumed = begun(), begun()
    for number in range(3):
        take_step(whole[0], whole[2], number)
    resumed[0].load_state_dict(whole[0].state_dict())
    resumed[2].load_state_dict(copy.deepcopy(whole[2].state_dict()))
    assert_same_state(resumed[1], whole[1])  # at once
    for number in range(3, STEPS):
        for student, _, ours in (whole, resumed):
            assert ours.param_groups[0]["ema_decay"] == cosine_to_one(number)
            take_step(student, ours, number)
    for mine, theirs in zip(resumed[:2], whole[:2], strict=True):
        assert_same_state(mine, theirs)
    # and where it is made after the state was loaded
    student = copy.deepcopy(whole[0])
    later = adam_of(student, update_every=every, ema_decay=0.5)
    later.load_state_dict(copy.deepcopy(whole[2].state_dict()))
    teacher = sf.AveragedModule(later, student, into=small_model(), decay=lambda step: step / 100)
    assert teacher.decay == STEPS / 100
    assert_same_state(teacher.module, whole[1])


def test_what_is_no_step_is_not_counted_as_no_resumed_run_would() -> None:
    student = model_with_norm()
    ours, seen = adam_of(student, fused=True), []
    averaged = sf.AveragedModule(
        ours, student, decay=lambda step: seen.append(step) or 0.5, buffers="copied"
    )
    student(normal((4, 3), 0))
    mean = averaged.module[1].running_mean.clone()
    for param in student.parameters():
        param.grad = torch.zeros_like(param)
    ours.param_groups[0]["lr"] = 0.0
    ours.step()  # asks for state, as torch.distributed.checkpoint does
    assert_same_bits(averaged.module[1].running_mean, mean)
    ours.param_groups[0]["lr"] = 0.1
    ours.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number in range(3):
        scaler.scale(student(normal((4, 3), number)).square().sum()).backward()
        if number == 1:
            student[0].bias.grad[0] = float("inf")
        scaler.step(ours)
        scaler.update()
        ours.zero_grad()
    assert seen == [0, 1, 1, 2]


def test_steps_of_the_other_player_are_not_counted() -> None:
    net = small_model()
    ours = sf.StackelbergAdam(sf.split_body_head(net, head="2"), lr=0.1, backend="cpu")
    seen: list[int] = []
    teacher = sf.AveragedModule(ours, net[2], decay=lambda step: seen.append(step) or 0.5)
    assert [group["ema_decay"] for group in ours.param_groups] == [None, 0.5]
    for number, role in enumerate(("head", "body", None, "body", "head")):
        take_step(net, ours, number, role=role)
    assert seen == [0, 1, 2, 3]
    assert teacher.decay == 0.5


def test_gradients_released_in_the_backward_pass() -> None:
    student = small_model()
    teacher, by_hand = copy.deepcopy(student), copy.deepcopy(student)
    ours = adam_of(student, release="backward")
    sf.AveragedModule(ours, student, into=teacher, decay=cosine_to_one)
    for number in range(STEPS):
        take_step(student, ours, number)
        averaged_by_hand(by_hand, student, cosine_to_one(number))
        for mine, expected in zip(teacher.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(mine, expected)


def test_before_the_first_step_its_weights_are_its_own() -> None:
    student = small_model()
    teacher = copy.deepcopy(student)
    averaged = sf.AveragedModule(adam_of(student), student, into=teacher, decay=0.5)
    before = copy.deepcopy(student)
    with torch.no_grad():
        for param in teacher.parameters():
            param.add_(1.0)
    assert_same_state(student, before)
    # those of now are what averages begin with
    assert averaged.module is teacher
    assert_same_state(teacher, student)


def test_frozen_weights_are_shared_and_averaged_once_they_are_trained() -> None:
    student = small_model()
    student[0].requires_grad_(False)
    teacher, by_hand = copy.deepcopy(student), copy.deepcopy(student)
    ours = adam_of(student, "reference", ema_decay=0.5)
    sf.AveragedModule(ours, student, into=teacher)
    assert teacher[0].weight.data_ptr() == student[0].weight.data_ptr()
    for number in range(4):
        if number == 2:
            student[0].requires_grad_(True)
        take_step(student, ours, number)
        averaged_by_hand(by_hand, student, 0.5)
        assert_same_state(teacher, by_hand)


def test_the_decay_reaches_groups_that_are_unfrozen_later() -> None:
    student = small_model()
    student[0].requires_grad_(False)
    for decay in (0.5, lambda step: 0.5):
        groups = [{"params": list(student[k].parameters())} for k in (0, 2)]
        ours = sf.StackelbergAdam(groups, lr=0.1, backend="cpu")
        averaged = sf.AveragedModule(ours, student, decay=decay)
        take_step(student, ours, 0)
        assert [group["ema_decay"] for group in ours.param_groups] == [None, 0.5]
        student[0].requires_grad_(True)
        if callable(decay):
            take_step(student, ours, 1)
        else:
            averaged.decay = 0.5
        assert averaged.decay == 0.5
        take_step(student, ours, 2)
        assert_same_bits(averaged.module[0].weight, ours.state[student[0].weight]["ema"])
        student[0].requires_grad_(False)


def _in_place(entry: dict[str, Any]) -> None:
    entry["ema"].data = entry["ema"].data.clone()


def _anew(entry: dict[str, Any]) -> None:
    entry["ema"] = entry["ema"].clone()


@pytest.mark.parametrize("move", [_in_place, _anew, None])
def test_averages_that_somebody_moves_are_followed(move: Callable[[Any], None] | None) -> None:
    student = small_model()
    teacher, ours = copy.deepcopy(student), adam_of(student)
    sf.AveragedModule(ours, student, into=teacher, decay=0.5)
    take_step(student, ours, 0)
    for param in student.parameters():
        if move is None:
            entry = ours.state[param]
            ours.state[param] = {**entry, "ema": entry["ema"].clone()}
        else:
            move(ours.state[param])
    take_step(student, ours, 1)
    for mine, param in zip(teacher.parameters(), student.parameters(), strict=True):
        assert_same_bits(mine, ours.state[param]["ema"])


@pytest.mark.filterwarnings("ignore:.*bfloat16 parameters are rounded to nearest")
def test_a_teacher_of_16_bits_stays_where_it_is() -> None:
    student = nn.Linear(3, 2, dtype=torch.bfloat16)
    teacher = copy.deepcopy(student)
    places = [param.data_ptr() for param in teacher.parameters()]
    ours = adam_of(student, ema_decay=0.75)
    sf.AveragedModule(ours, student, into=teacher)
    for _ in range(3):
        student(torch.ones(4, 3, dtype=torch.bfloat16)).square().sum().backward()
        ours.step(zero_grad=True)
        for param, average in zip(teacher.parameters(), averages(ours), strict=True):
            assert_same_bits(param.detach(), average.bfloat16())
    assert [param.data_ptr() for param in teacher.parameters()] == places


@pytest.mark.parametrize("given", [False, True])
def test_buffers_as_the_user_says(given: bool) -> None:
    for buffers in get_args(Buffers):
        student = model_with_norm()
        teacher = copy.deepcopy(student) if given else None
        by_hand = copy.deepcopy(student[1])
        ours = adam_of(student)
        averaged = sf.AveragedModule(
            ours, student, into=teacher, decay=cosine_to_one, buffers=buffers
        )
        teacher = averaged.module if teacher is None else teacher
        for number in range(3):
            take_step(student, ours, number)
            for name, buffer in by_hand.named_buffers():
                theirs = student[1].get_buffer(name)
                if buffers == "averaged" and buffer.is_floating_point():
                    buffer.lerp_(theirs, 1.0 - cosine_to_one(number))
                elif buffers != "own":
                    buffer.copy_(theirs)
                assert_same_bits(teacher[1].get_buffer(name), buffer)
                assert (teacher[1].get_buffer(name) is theirs) == (buffers == "shared")
        assert student[1].running_mean.any()
        mean = teacher[1].running_mean.clone()
        backward_of(student, 9)  # a pass that no step follows
        assert torch.equal(mean, teacher[1].running_mean) == (buffers != "shared")


def test_buffers_are_averaged_as_torchs_averaged_model() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    student = model_with_norm()
    averaging = get_ema_multi_avg_fn(0.9)
    torchs = AveragedModel(student, multi_avg_fn=averaging, use_buffers=True)
    torchs.update_parameters(student)  # the first is a copy
    ours = adam_of(student, "reference")
    teacher = sf.AveragedModule(ours, student, decay=0.9, buffers="averaged")
    for number in range(3):
        take_step(student, ours, number)
        torchs.update_parameters(student)
    for mine, theirs in zip(teacher.module.parameters(), torchs.module.parameters(), strict=True):
        assert_same_bits(mine.detach(), theirs.detach())
    for name in ("running_mean", "running_var"):
        mine, theirs = (m.get_buffer(f"1.{name}") for m in (teacher.module, torchs.module))
        assert_same_bits(mine, theirs)


def test_a_player_is_its_optimizer() -> None:
    net = small_model()
    ours = sf.StackelbergAdam(sf.split_body_head(net, head="2"), lr=0.1, ema_decay=0.5)
    head = ours.player("head")
    target = sf.AveragedModule(head, net[2])
    whole = sf.AveragedModule(ours.player("body"), net)
    backward_of(net, 0)
    head.step()
    for module in (target.module, whole.module[2]):
        assert_same_bits(module.weight.detach(), ours.state[net[2].weight]["ema"])
    assert_same_bits(whole.module[0].weight, net[0].weight)


@by_wrapper
def test_optimizers_in_wrappers(wrapper: Any) -> None:
    student = small_model()
    teacher, ours = copy.deepcopy(student), adam_of(student)
    wrapped = wrapper(ours)
    sf.AveragedModule(wrapped, student, into=teacher, decay=0.5)
    backward_of(student, 0)
    wrapped.step()
    for param, average in zip(teacher.parameters(), averages(ours), strict=True):
        assert_same_bits(param.detach(), average)


def test_copies_follow_the_copied_optimizer() -> None:
    student = small_model()
    teacher, ours = copy.deepcopy(student), adam_of(student)
    parts = (
        student,
        teacher,
        ours,
        sf.AveragedModule(ours, student, into=teacher, decay=growing_decay),
    )
    take_step(student, ours, 0)
    for others in (copy.deepcopy(parts), pickle.loads(pickle.dumps(parts))):
        student, teacher, ours, _ = others
        for number in (1, 2):
            take_step(student, ours, number)
        for param, average in zip(teacher.parameters(), averages(ours), strict=True):
            assert_same_bits(param.detach(), average)
        assert ours.param_groups[0]["ema_decay"] == growing_decay(3)
