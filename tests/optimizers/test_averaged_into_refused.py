"""How long averages in a module that there is already are followed, and what cannot be."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import normal
from checks import assert_same_bits
from followers import (
    adam_of,
    assert_same_state,
    cosine_to_one,
    growing_decay,
    model_with_norm,
    small_model,
    take_step,
)
from torch import Tensor, nn

import stackelberg_fused as sf


def test_nothing_keeps_an_optimizer_that_nobody_holds() -> None:
    student = small_model()
    teacher, ours = copy.deepcopy(student), adam_of(student)
    averaged = sf.AveragedModule(ours, student, into=teacher, decay=cosine_to_one, buffers="copied")
    take_step(student, ours, 0)
    gone = weakref.ref(ours)
    gc.disable()
    try:
        del ours, averaged
        assert gone() is None
    finally:
        gc.enable()
    assert teacher(torch.ones(1, 3)).isfinite().all()


def test_a_copy_that_nobody_holds_is_over() -> None:
    student = model_with_norm()
    ours = adam_of(student)
    dropped = sf.AveragedModule(ours, student, decay=cosine_to_one, buffers="copied")
    mean = weakref.ref(dropped.module[1].running_mean)
    held = sf.AveragedModule(ours, student, decay=0.5, buffers="copied")
    dropped.module.itself = [dropped.module]  # the collector finds it in the midst of a step
    ours.register_step_post_hook(lambda *_: gc.collect())
    ours.register_step_post_hook(lambda *_: None)
    del dropped
    take_step(student, ours, 0)
    assert mean() is None
    module = held.module
    del held
    take_step(student, ours, 1)
    assert ours.param_groups[0]["ema_decay"] == cosine_to_one(1)  # which was set before it was over
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
    student = small_model()
    ours = adam_of(student, ema_decay=0.5)
    averaged = sf.AveragedModule(ours, student, into=copy.deepcopy(student))
    take_step(student, ours, 0)
    weight, teacher = student[0].weight.clone(), copy.deepcopy(averaged.module)
    change(student, ours)
    for number in (1, 2):
        with pytest.raises((ValueError, RuntimeError), match="AveragedModule"):
            take_step(student, ours, number)
    assert_same_bits(student[0].weight, weight)
    assert_same_state(averaged._module, teacher)


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
        student = small_model()
        teacher, ours = copy.deepcopy(student), adam_of(student, ema_decay=0.5)
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
        sf.AveragedModule(adam_of(untied), untied, into=tied, decay=0.5)
    teacher, ours = copy.deepcopy(tied), adam_of(tied)
    sf.AveragedModule(ours, tied, into=teacher, decay=0.5)
    take_step(tied, ours, 0)
    assert teacher[0].weight is teacher[1].weight
    assert_same_bits(teacher[1].weight, ours.state[tied[0].weight]["ema"])


def test_made_again_and_refused_while_the_averages_are_in_the_weights() -> None:
    student = model_with_norm()
    teacher, ours = copy.deepcopy(student), adam_of(student)
    sf.AveragedModule(ours, student, into=teacher, decay=0.5)
    take_step(student, ours, 0)
    with ours.ema_weights(), pytest.raises(RuntimeError, match=r"leave ema_weights\(\)"):
        sf.AveragedModule(ours, student, into=teacher, decay=0.9)
    assert ours.param_groups[0]["ema_decay"] == 0.5
    again = sf.AveragedModule(ours, student, into=teacher, decay=0.9)
    assert again.module is teacher
    assert again.decay == 0.9
    # the earlier one is over, with its schedule
    for decay in (growing_decay, lambda _: 0.8):
        sf.AveragedModule(ours, student, into=teacher, decay=decay, buffers="own")
    take_step(student, ours, 1)
    assert ours.param_groups[0]["ema_decay"] == 0.8
    assert len(ours._optimizer_step_post_hooks) == 1


def test_bad_arguments() -> None:
    student, normed = small_model(), model_with_norm()
    ours = adam_of(student, ema_decay=0.5)
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
    optimizer = adam_of(normed)
    normed[1].weight, normed[1].bias = without[1].weight, without[1].bias
    optimizer = adam_of(normed)
    with pytest.raises(ValueError, match=r"module has buffers that into has not: 1\.running_mean"):
        sf.AveragedModule(optimizer, normed, into=teacher, decay=0.5)
    sf.AveragedModule(optimizer, normed, into=teacher, decay=0.5, buffers="own")
    # a graph that was captured would never hear of it
    capturable = [{"params": list(student.parameters()), "capturable": True}]
    with pytest.raises(ValueError, match="decay cannot be a function with capturable=True"):
        sf.AveragedModule(
            sf.StackelbergAdam(capturable, backend="cpu"), student, decay=cosine_to_one
        )
    assert ours.param_groups[0]["ema_decay"] == 0.5


def test_within_a_compiled_function() -> None:
    student = small_model()
    teacher, ours = copy.deepcopy(student), adam_of(student)
    sf.AveragedModule(ours, student, into=teacher, decay=0.5)
    called: Callable[[Tensor], Tensor] = torch.compile(
        lambda inputs: teacher(inputs) + 1, backend="eager"
    )
    inputs = normal((2, 3), 1)
    for number in range(3):
        take_step(student, ours, number)
        with torch.no_grad():
            torch.testing.assert_close(called(inputs), teacher(inputs) + 1)
