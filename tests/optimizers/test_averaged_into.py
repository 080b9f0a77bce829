"""Averages written into a module that there is already, with a decay by steps: beside plain torch's loop by hand."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from averages import averages
from backends import by_backend, chosen
from cases import normal
from checks import assert_same_bits
from imitations import by_wrapper
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.optimizers.averaged_following import Buffers

STEPS = 6


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def _with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _cosine(step: int, base: float = 0.9, steps: int = STEPS - 1) -> float:
    """BYOL's: from `base` to 1, which it reaches."""
    return 1.0 - (1.0 - base) * (1.0 + math.cos(math.pi * min(step, steps) / steps)) / 2.0


def _adam(model: nn.Module, backend: Any = "cpu", **more: Any) -> Any:
    return sf.StackelbergAdam(model.parameters(), lr=0.1, backend=backend, **more)


def _backward(model: nn.Module, number: int) -> None:
    device = next(model.parameters()).device
    model(normal((4, 3), number).to(device)).square().sum().backward()


def _step(model: nn.Module, optimizer: Any, number: int, **how: Any) -> None:
    _backward(model, number)
    optimizer.step(**how)
    optimizer.zero_grad()


@torch.no_grad()
def _by_hand(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """What codes of BYOL, DINO and DQN do after each step."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.lerp_(theirs, 1.0 - decay)


def _same(one: nn.Module, other: nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        assert_same_bits(tensor, other.state_dict()[name])


@by_backend
def test_a_teacher_with_a_cosine_is_as_by_hand(backend: str) -> None:
    instance, device = chosen(backend)
    student = _model().to(device)
    teacher, by_hand = copy.deepcopy(student), copy.deepcopy(student)
    params = list(teacher.parameters())
    ours = _adam(student, instance)
    sf.AveragedModule(ours, student, into=teacher, decay=_cosine)
    for number in range(STEPS):
        _step(student, ours, number)
        _by_hand(by_hand, student, _cosine(number))
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
    tau, online = 0.05, _model()
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
        _by_hand(by_hand, theirs, 1.0 - tau)
        _same(online, theirs)
        _same(target, by_hand)


def test_a_decay_is_set_as_often_as_one_likes() -> None:
    student = _model()
    by_hand = copy.deepcopy(student)
    groups = [{"params": student.parameters()}, {"params": [nn.Parameter(torch.ones(2))]}]
    ours = sf.StackelbergAdam(groups, lr=0.1, backend="reference", ema_decay=0.5)
    teacher = sf.AveragedModule(ours, student)
    for number in range(STEPS):
        teacher.decay = decay = 0.9 + 0.01 * number
        assert teacher.decay == decay
        _step(student, ours, number)
        _by_hand(by_hand, student, decay)
        _same(teacher.module, by_hand)
    assert ours.param_groups[1]["ema_decay"] == 0.5
    wrong: Any
    for wrong, error in ((1.1, ValueError), (math.nan, ValueError), ("high", TypeError)):
        with pytest.raises(error, match=r"AveragedModule: .*decay"):
            teacher.decay = wrong
    assert teacher.decay == decay


def test_several_decays_are_no_one() -> None:
    student = _model()
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
        student = _model()
        teacher = copy.deepcopy(student)
        ours = _adam(student, update_every=every)
        sf.AveragedModule(ours, student, into=teacher, decay=_cosine)
        return student, teacher, ours

    whole, resumed = begun(), begun()
    for number in range(3):
        _step(whole[0], whole[2], number)
    resumed[0].load_state_dict(whole[0].state_dict())
    resumed[2].load_state_dict(copy.deepcopy(whole[2].state_dict()))
    _same(resumed[1], whole[1])  # at once
    for number in range(3, STEPS):
        for student, _, ours in (whole, resumed):
            assert ours.param_groups[0]["ema_decay"] == _cosine(number)
            _step(student, ours, number)
    for mine, theirs in zip(resumed[:2], whole[:2], strict=True):
        _same(mine, theirs)
    # and where it is made after the state was loaded
    student = copy.deepcopy(whole[0])
    later = _adam(student, update_every=every, ema_decay=0.5)
    later.load_state_dict(copy.deepcopy(whole[2].state_dict()))
    teacher = sf.AveragedModule(later, student, into=_model(), decay=lambda step: step / 100)
    assert teacher.decay == STEPS / 100
    _same(teacher.module, whole[1])


def test_what_is_no_step_is_not_counted_as_no_resumed_run_would() -> None:
    student = _with_norm()
    ours, seen = _adam(student, fused=True), []
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
    net = _model()
    ours = sf.StackelbergAdam(sf.split_body_head(net, head="2"), lr=0.1, backend="cpu")
    seen: list[int] = []
    teacher = sf.AveragedModule(ours, net[2], decay=lambda step: seen.append(step) or 0.5)
    assert [group["ema_decay"] for group in ours.param_groups] == [None, 0.5]
    for number, role in enumerate(("head", "body", None, "body", "head")):
        _step(net, ours, number, role=role)
    assert seen == [0, 1, 2, 3]
    assert teacher.decay == 0.5


def test_gradients_released_in_the_backward_pass() -> None:
    student = _model()
    teacher, by_hand = copy.deepcopy(student), copy.deepcopy(student)
    ours = _adam(student, release="backward")
    sf.AveragedModule(ours, student, into=teacher, decay=_cosine)
    for number in range(STEPS):
        _step(student, ours, number)
        _by_hand(by_hand, student, _cosine(number))
        for mine, expected in zip(teacher.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(mine, expected)


def test_before_the_first_step_its_weights_are_its_own() -> None:
    student = _model()
    teacher = copy.deepcopy(student)
    averaged = sf.AveragedModule(_adam(student), student, into=teacher, decay=0.5)
    before = copy.deepcopy(student)
    with torch.no_grad():
        for param in teacher.parameters():
            param.add_(1.0)
    _same(student, before)
    # those of now are what averages begin with
    assert averaged.module is teacher
    _same(teacher, student)


def test_frozen_weights_are_shared_and_averaged_once_they_are_trained() -> None:
    student = _model()
    student[0].requires_grad_(False)
    teacher, by_hand = copy.deepcopy(student), copy.deepcopy(student)
    ours = _adam(student, "reference", ema_decay=0.5)
    sf.AveragedModule(ours, student, into=teacher)
    assert teacher[0].weight.data_ptr() == student[0].weight.data_ptr()
    for number in range(4):
        if number == 2:
            student[0].requires_grad_(True)
        _step(student, ours, number)
        _by_hand(by_hand, student, 0.5)
        _same(teacher, by_hand)


def test_the_decay_reaches_groups_that_are_unfrozen_later() -> None:
    student = _model()
    student[0].requires_grad_(False)
    for decay in (0.5, lambda step: 0.5):
        groups = [{"params": list(student[k].parameters())} for k in (0, 2)]
        ours = sf.StackelbergAdam(groups, lr=0.1, backend="cpu")
        averaged = sf.AveragedModule(ours, student, decay=decay)
        _step(student, ours, 0)
        assert [group["ema_decay"] for group in ours.param_groups] == [None, 0.5]
        student[0].requires_grad_(True)
        if callable(decay):
            _step(student, ours, 1)
        else:
            averaged.decay = 0.5
        assert averaged.decay == 0.5
        _step(student, ours, 2)
        assert_same_bits(averaged.module[0].weight, ours.state[student[0].weight]["ema"])
        student[0].requires_grad_(False)


def _in_place(entry: dict[str, Any]) -> None:
    entry["ema"].data = entry["ema"].data.clone()


def _anew(entry: dict[str, Any]) -> None:
    entry["ema"] = entry["ema"].clone()


@pytest.mark.parametrize("move", [_in_place, _anew, None])
def test_averages_that_somebody_moves_are_followed(move: Callable[[Any], None] | None) -> None:
    student = _model()
    teacher, ours = copy.deepcopy(student), _adam(student)
    sf.AveragedModule(ours, student, into=teacher, decay=0.5)
    _step(student, ours, 0)
    for param in student.parameters():
        if move is None:
            entry = ours.state[param]
            ours.state[param] = {**entry, "ema": entry["ema"].clone()}
        else:
            move(ours.state[param])
    _step(student, ours, 1)
    for mine, param in zip(teacher.parameters(), student.parameters(), strict=True):
        assert_same_bits(mine, ours.state[param]["ema"])


@pytest.mark.filterwarnings("ignore:.*bfloat16 parameters are rounded to nearest")
def test_a_teacher_of_16_bits_stays_where_it_is() -> None:
    student = nn.Linear(3, 2, dtype=torch.bfloat16)
    teacher = copy.deepcopy(student)
    places = [param.data_ptr() for param in teacher.parameters()]
    ours = _adam(student, ema_decay=0.75)
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
        student = _with_norm()
        teacher = copy.deepcopy(student) if given else None
        by_hand = copy.deepcopy(student[1])
        ours = _adam(student)
        averaged = sf.AveragedModule(ours, student, into=teacher, decay=_cosine, buffers=buffers)
        teacher = averaged.module if teacher is None else teacher
        for number in range(3):
            _step(student, ours, number)
            for name, buffer in by_hand.named_buffers():
                theirs = student[1].get_buffer(name)
                if buffers == "averaged" and buffer.is_floating_point():
                    buffer.lerp_(theirs, 1.0 - _cosine(number))
                elif buffers != "own":
                    buffer.copy_(theirs)
                assert_same_bits(teacher[1].get_buffer(name), buffer)
                assert (teacher[1].get_buffer(name) is theirs) == (buffers == "shared")
        assert student[1].running_mean.any()
        mean = teacher[1].running_mean.clone()
        _backward(student, 9)  # a pass that no step follows
        assert torch.equal(mean, teacher[1].running_mean) == (buffers != "shared")


def test_buffers_are_averaged_as_torchs_averaged_model() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    student = _with_norm()
    averaging = get_ema_multi_avg_fn(0.9)
    torchs = AveragedModel(student, multi_avg_fn=averaging, use_buffers=True)
    torchs.update_parameters(student)  # the first is a copy
    ours = _adam(student, "reference")
    teacher = sf.AveragedModule(ours, student, decay=0.9, buffers="averaged")
    for number in range(3):
        _step(student, ours, number)
        torchs.update_parameters(student)
    for mine, theirs in zip(teacher.module.parameters(), torchs.module.parameters(), strict=True):
        assert_same_bits(mine.detach(), theirs.detach())
    for name in ("running_mean", "running_var"):
        mine, theirs = (m.get_buffer(f"1.{name}") for m in (teacher.module, torchs.module))
        assert_same_bits(mine, theirs)


def test_a_player_is_its_optimizer() -> None:
    net = _model()
    ours = sf.StackelbergAdam(sf.split_body_head(net, head="2"), lr=0.1, ema_decay=0.5)
    head = ours.player("head")
    target = sf.AveragedModule(head, net[2])
    whole = sf.AveragedModule(ours.player("body"), net)
    _backward(net, 0)
    head.step()
    for module in (target.module, whole.module[2]):
        assert_same_bits(module.weight.detach(), ours.state[net[2].weight]["ema"])
    assert_same_bits(whole.module[0].weight, net[0].weight)


@by_wrapper
def test_optimizers_in_wrappers(wrapper: Any) -> None:
    student = _model()
    teacher, ours = copy.deepcopy(student), _adam(student)
    wrapped = wrapper(ours)
    sf.AveragedModule(wrapped, student, into=teacher, decay=0.5)
    _backward(student, 0)
    wrapped.step()
    for param, average in zip(teacher.parameters(), averages(ours), strict=True):
        assert_same_bits(param.detach(), average)


def test_copies_follow_the_copied_optimizer() -> None:
    student = _model()
    teacher, ours = copy.deepcopy(student), _adam(student)
    parts = student, teacher, ours, sf.AveragedModule(ours, student, into=teacher, decay=_half)
    _step(student, ours, 0)
    for others in (copy.deepcopy(parts), pickle.loads(pickle.dumps(parts))):
        student, teacher, ours, _ = others
        for number in (1, 2):
            _step(student, ours, number)
        for param, average in zip(teacher.parameters(), averages(ours), strict=True):
            assert_same_bits(param.detach(), average)
        assert ours.param_groups[0]["ema_decay"] == _half(3)


def _half(step: int) -> float:
    return 0.5 + 0.1 * step


def test_nothing_keeps_an_optimizer_that_nobody_holds() -> None:
    student = _model()
    teacher, ours = copy.deepcopy(student), _adam(student)
    averaged = sf.AveragedModule(ours, student, into=teacher, decay=_cosine, buffers="copied")
    _step(student, ours, 0)
    gone = weakref.ref(ours)
    gc.disable()
    try:
        del ours, averaged
        assert gone() is None
    finally:
        gc.enable()
    assert teacher(torch.ones(1, 3)).isfinite().all()


def test_a_copy_that_nobody_holds_is_over() -> None:
    student = _with_norm()
    ours = _adam(student)
    dropped = sf.AveragedModule(ours, student, decay=_cosine, buffers="copied")
    mean = weakref.ref(dropped.module[1].running_mean)
    held = sf.AveragedModule(ours, student, decay=0.5, buffers="copied")
    dropped.module.itself = [dropped.module]  # the collector finds it in the midst of a step
    ours.register_step_post_hook(lambda *_: gc.collect())
    ours.register_step_post_hook(lambda *_: None)
    del dropped
    _step(student, ours, 0)
    assert mean() is None
    module = held.module
    del held
    _step(student, ours, 1)
    assert ours.param_groups[0]["ema_decay"] == _cosine(1)  # which was set before it was over
    assert_same_bits(module[1].running_mean, student[1].running_mean)
    trained, optimizer = weakref.ref(student[0]), weakref.ref(ours)
    del module
    sf.AveragedModule(ours, student, decay=0.5, buffers="copied")
    sf.AveragedModule(ours, student, decay=0.5, buffers="copied")
    assert len(ours._optimizer_step_post_hooks) == 3
    assert len(ours._optimizer_load_state_dict_post_hooks) == 1
    module = sf.AveragedModule(ours, student, decay=0.5, buffers="copied").module
    del ours, student
    gc.collect()
    assert trained() is None
    assert optimizer() is None
    assert module(torch.ones(2, 3)).isfinite().all()


def _without_decay(student: nn.Sequential, ours: Any) -> None:
    ours.param_groups[0]["ema_decay"] = None


def _exchanged(student: nn.Sequential, ours: Any) -> None:
    student[2] = nn.Linear(5, 2)


@pytest.mark.parametrize("change", [_without_decay, _exchanged])
def test_what_cannot_be_followed_is_refused_before_the_step(change: Any) -> None:
    student = _model()
    ours = _adam(student, ema_decay=0.5)
    averaged = sf.AveragedModule(ours, student, into=copy.deepcopy(student))
    _step(student, ours, 0)
    weight, teacher = student[0].weight.clone(), copy.deepcopy(averaged.module)
    change(student, ours)
    for number in (1, 2):
        with pytest.raises((ValueError, RuntimeError), match="AveragedModule"):
            _step(student, ours, number)
    assert_same_bits(student[0].weight, weight)
    _same(averaged._module, teacher)


def _reshaped(module: nn.Sequential) -> None:
    module[2] = nn.Linear(5, 3)


def _widened(module: nn.Sequential) -> None:
    module.append(nn.Linear(2, 2))


def _cut(module: nn.Sequential) -> None:
    del module[2]


def _moved(module: nn.Sequential) -> None:
    with torch.no_grad():
        module[2].bias.add_(1.0)


def test_modules_that_cannot_take_averages() -> None:
    for change, message in (
        (
            _reshaped,
            r"'2.weight' of into is \[3, 5\] torch.float32 on cpu, that of module \[2, 5\]",
        ),
        (_widened, "into has parameters that module has not: 3.weight, 3.bias"),
        (_cut, "module has parameters that into has not: 2.weight, 2.bias"),
        (_moved, r"'2.bias' of into differs .*load_state_dict\(module\.state_dict\(\)\) first"),
        (nn.Module.double, "'0.weight' of into is .* torch.float64 on cpu, that of"),
    ):
        student = _model()
        teacher, ours = copy.deepcopy(student), _adam(student, ema_decay=0.5)
        change(teacher)
        with pytest.raises(ValueError, match=message):
            sf.AveragedModule(ours, student, into=teacher, decay=0.9)
        assert all(param.requires_grad for param in teacher.parameters())
        assert ours.param_groups[0]["ema_decay"] == 0.5
        assert not ours._optimizer_step_post_hooks


def test_tied_weights_are_tied_in_both() -> None:
    untied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied = copy.deepcopy(untied)
    tied[1].weight = tied[0].weight
    untied.load_state_dict(tied.state_dict())
    with pytest.raises(ValueError, match=r"'1\.weight' of into has another name too"):
        sf.AveragedModule(_adam(untied), untied, into=tied, decay=0.5)
    teacher, ours = copy.deepcopy(tied), _adam(tied)
    sf.AveragedModule(ours, tied, into=teacher, decay=0.5)
    _step(tied, ours, 0)
    assert teacher[0].weight is teacher[1].weight
    assert_same_bits(teacher[1].weight, ours.state[tied[0].weight]["ema"])


def test_made_again_and_refused_while_the_averages_are_in_the_weights() -> None:
    student = _with_norm()
    teacher, ours = copy.deepcopy(student), _adam(student)
    sf.AveragedModule(ours, student, into=teacher, decay=0.5)
    _step(student, ours, 0)
    with ours.ema_weights(), pytest.raises(RuntimeError, match=r"leave ema_weights\(\)"):
        sf.AveragedModule(ours, student, into=teacher, decay=0.9)
    assert ours.param_groups[0]["ema_decay"] == 0.5
    again = sf.AveragedModule(ours, student, into=teacher, decay=0.9)
    assert again.module is teacher
    assert again.decay == 0.9
    # the earlier one is over, with its schedule
    for decay in (_half, lambda _: 0.8):
        sf.AveragedModule(ours, student, into=teacher, decay=decay, buffers="own")
    _step(student, ours, 1)
    assert ours.param_groups[0]["ema_decay"] == 0.8
    assert len(ours._optimizer_step_post_hooks) == 1


def test_bad_arguments() -> None:
    student, normed = _model(), _with_norm()
    ours = _adam(student, ema_decay=0.5)
    a_tensor: Any = torch.ones(2)
    with pytest.raises(TypeError, match=r"into must be an nn\.Module, got Tensor"):
        sf.AveragedModule(ours, student, into=a_tensor)
    with pytest.raises(ValueError, match=r"'0.weight' of into is module's own"):
        sf.AveragedModule(ours, student, into=student)
    for decay, error in (
        (-0.1, ValueError),
        (lambda _: 1.5, ValueError),
        (lambda _: None, TypeError),
    ):
        with pytest.raises(error, match=r"AveragedModule: .*decay"):
            sf.AveragedModule(ours, student, decay=decay)
    without = nn.Sequential(normed[0], nn.BatchNorm1d(4, track_running_stats=False), normed[2])
    teacher = copy.deepcopy(without)
    optimizer = _adam(normed)
    normed[1].weight, normed[1].bias = without[1].weight, without[1].bias
    optimizer = _adam(normed)
    with pytest.raises(ValueError, match=r"module has buffers that into has not: 1\.running_mean"):
        sf.AveragedModule(optimizer, normed, into=teacher, decay=0.5)
    sf.AveragedModule(optimizer, normed, into=teacher, decay=0.5, buffers="own")
    # a graph that was captured would never hear of it
    capturable = [{"params": list(student.parameters()), "capturable": True}]
    with pytest.raises(ValueError, match="decay cannot be a function with capturable=True"):
        sf.AveragedModule(sf.StackelbergAdam(capturable, backend="cpu"), student, decay=_cosine)
    assert ours.param_groups[0]["ema_decay"] == 0.5


def test_within_a_compiled_function() -> None:
    student = _model()
    teacher, ours = copy.deepcopy(student), _adam(student)
    sf.AveragedModule(ours, student, into=teacher, decay=0.5)
    called: Callable[[Tensor], Tensor] = torch.compile(
        lambda inputs: teacher(inputs) + 1, backend="eager"
    )
    inputs = normal((2, 3), 1)
    for number in range(3):
        _step(student, ours, number)
        with torch.no_grad():
            torch.testing.assert_close(called(inputs), teacher(inputs) + 1)
