"""Averages as a module of their own: as averages by hand, in the optimizer's memory, whatever becomes of that."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from averages import averages
from backends import by_backend, chosen
from cases import normal
from checks import assert_same_bits
from imitations import by_wrapper
from torch import Tensor, nn

import stackelberg_fused as sf

DECAY = 0.75


def _model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def _averaged(
    backend: Any = "cpu", model: nn.Module | None = None, **more: Any
) -> tuple[Any, Any, sf.AveragedModule[Any]]:
    model = _model() if model is None else model
    ours = sf.StackelbergAdam(model.parameters(), lr=0.1, backend=backend, ema_decay=DECAY)
    return model, ours, sf.AveragedModule(ours, model, **more)


def _step(model: nn.Module, ours: Any, number: int = 0, rows: int = 4) -> None:
    device = next(model.parameters()).device
    model(normal((rows, 3), number).to(device)).square().sum().backward()
    ours.step(zero_grad=True)


def _same_tensors(target: sf.AveragedModule[Any], tensors: list[Tensor]) -> None:
    for own, expected in zip(target.module.parameters(), tensors, strict=True):
        assert_same_bits(own.detach(), expected.detach())


@by_backend
def test_it_is_the_average_by_hand(backend: str) -> None:
    instance, device = chosen(backend)
    model, ours, target = _averaged(instance, _model().to(device))
    by_hand, inputs = copy.deepcopy(model).requires_grad_(False), normal((6, 3), 9).to(device)
    assert_same_bits(target(inputs), by_hand(inputs))  # that of no step is the start
    for number in range(5):
        _step(model, ours, number)
        for average, weight in zip(by_hand.parameters(), model.parameters(), strict=True):
            average.lerp_(weight.detach(), 1 - DECAY)
        if backend == "reference":
            assert_same_bits(target(inputs), by_hand(inputs))
        else:
            torch.testing.assert_close(target(inputs), by_hand(inputs))
    assert not torch.allclose(target(inputs), model(inputs).detach(), rtol=0.01)


def test_a_step_writes_where_the_module_lies() -> None:
    model, ours, target = _averaged()
    _step(model, ours)
    places = [param.data_ptr() for param in target.module.parameters()]
    assert places == [average.data_ptr() for average in averages(ours)]
    before = copy.deepcopy(target.module)
    within = list(target.module.parameters())
    _step(model, ours, 1)
    for param, old, average in zip(within, before.parameters(), averages(ours), strict=True):
        assert not torch.equal(param, old)
        assert_same_bits(param.detach(), average)


def test_weights_that_are_loaded_before_the_first_step_are_the_average() -> None:
    model, ours, target = _averaged()
    model.load_state_dict(_model(7).state_dict())
    _same_tensors(target, list(model.parameters()))
    start = [param.detach().clone() for param in model.parameters()]
    _step(model, ours)
    expected = [
        s.lerp(p.detach(), 1 - DECAY) for s, p in zip(start, model.parameters(), strict=True)
    ]
    for own, average in zip(target.module.parameters(), expected, strict=True):
        torch.testing.assert_close(own.detach(), average)


def test_it_follows_a_loaded_state() -> None:
    model, ours, target = _averaged()
    _step(model, ours)
    saved = copy.deepcopy(ours.state_dict())
    kept = [average.clone() for average in averages(ours)]
    _step(model, ours, 1)
    target(normal((1, 3), 0))
    ours.load_state_dict(saved)
    _same_tensors(target, kept)
    _step(model, ours, 2)
    _same_tensors(target, averages(ours))


def test_it_follows_a_replaced_parameter() -> None:
    model, ours, target = _averaged()
    _step(model, ours)
    rows = torch.tensor([1, -1, 0])
    for name in ("weight", "bias"):
        old = getattr(model[2], name)
        new = nn.Parameter(old.detach()[rows])
        ours.replace(old, new, rows)
        setattr(model[2], name, new)
    assert target(normal((4, 3), 5)).shape == (4, 3)
    _step(model, ours, 1)
    _same_tensors(target, averages(ours))


def test_it_follows_other_groups_and_moves() -> None:
    model, ours, target = _averaged()
    _step(model, ours)
    ours.add_param_group({"params": [nn.Parameter(torch.ones(2))], "ema_decay": None})
    target.module.to(torch.float64)  # it comes back to the averages
    _step(model, ours, 1)
    assert all(param.dtype is torch.float32 for param in target.module.parameters())
    _same_tensors(target, [ours.state[param]["ema"] for param in model.parameters()])


@pytest.mark.parametrize("change", ["exchanged", "added", "removed", "parametrized"])
def test_other_layers_are_refused(change: str) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    optimizer = sf.StackelbergAdamW(net.parameters(), ema_decay=0.9)
    averaged = sf.AveragedModule(optimizer, net)
    if change == "exchanged":
        net[2] = nn.Linear(3, 2)
    elif change == "added":
        net.append(nn.Linear(2, 2))
    elif change == "removed":
        del net[2]
    else:
        nn.utils.parametrizations.spectral_norm(net[0])
    for use in (lambda: averaged.module, lambda: averaged(torch.ones(3))):
        with pytest.raises(RuntimeError, match=r"exchanged, added or removed .* make it anew"):
            use()


def test_frozen_parameters_are_their_own_average() -> None:
    model = _model()
    model[0].requires_grad_(False)
    ours = sf.StackelbergAdam(model[2].parameters(), lr=0.1, backend="cpu", ema_decay=DECAY)
    target = sf.AveragedModule(ours, model)
    _step(model, ours)
    assert_same_bits(target.module[0].weight, model[0].weight)
    assert_same_bits(target.module[2].weight.detach(), ours.state[model[2].weight]["ema"])


def test_what_is_written_to_it_is_written_to_the_averages() -> None:
    model, ours, target = _averaged()
    _step(model, ours)
    target.module.load_state_dict(_model(3).state_dict())
    for average, other in zip(averages(ours), _model(3).parameters(), strict=True):
        assert_same_bits(average, other.detach())


def test_what_is_written_to_it_before_the_first_step_is_written_to_the_weights() -> None:
    model, ours, target = _averaged()
    target.module.load_state_dict(_model(3).state_dict())
    for weight, other in zip(model.parameters(), _model(3).parameters(), strict=True):
        assert_same_bits(weight.detach(), other.detach())
    _step(model, ours)
    assert not torch.equal(model[0].weight, target.module[0].weight)


def test_it_needs_no_gradient_and_passes_those_of_inputs_on() -> None:
    model, ours, target = _averaged()
    _step(model, ours)
    inputs = normal((2, 3), 4).requires_grad_()
    target(inputs).sum().backward()
    assert inputs.grad is not None
    assert inputs.grad.any()
    assert all(param.grad is None for param in (*target.module.parameters(), *model.parameters()))


@pytest.mark.parametrize("master", [None, "fp32", "split16"])
@pytest.mark.filterwarnings("ignore:.*bfloat16 parameters are rounded to nearest")
def test_averages_of_16_bit_weights_are_rounded(master: str | None) -> None:
    model = nn.Linear(3, 2, dtype=torch.bfloat16)
    ours = sf.StackelbergAdam(
        model.parameters(), lr=0.1, backend="cpu", ema_decay=DECAY, master=master
    )
    target = sf.AveragedModule(ours, model)
    for _ in range(3):
        model(torch.ones(4, 3, dtype=torch.bfloat16)).square().sum().backward()
        ours.step(zero_grad=True)
        assert all(average.dtype is torch.float32 for average in averages(ours))
        _same_tensors(target, [average.bfloat16() for average in averages(ours)])
    assert target(torch.ones(1, 3, dtype=torch.bfloat16)).dtype is torch.bfloat16


class Tied(nn.Module):
    """One weight in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs))


def test_tied_weights_stay_tied() -> None:
    model, ours, target = _averaged(model=Tied())
    _step(model, ours)
    assert target.module.first.weight is target.module.second.weight
    _same_tensors(target, averages(ours))


@pytest.mark.parametrize("buffers", ["shared", "own"])
def test_buffers(buffers: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    _, ours, target = _averaged(model=model, buffers=buffers)
    for number in range(2):
        _step(model, ours, number)
    expected = model[1].running_mean if buffers == "shared" else torch.zeros(4)
    assert_same_bits(target.module[1].running_mean, expected)
    assert model[1].running_mean.any()
    model[1].running_mean = torch.full((4,), 5.0)  # rebound
    mean = 5.0 if buffers == "shared" else 0.0
    assert target.module[1].running_mean.tolist() == [mean] * 4


def test_modes_are_its_own() -> None:
    model, _, target = _averaged()
    target.module.eval()
    model.train()
    assert not target.module.training


@by_wrapper
def test_optimizers_in_wrappers(wrapper: Any) -> None:
    model = _model()
    ours = sf.StackelbergAdam(model.parameters(), lr=0.1, backend="cpu", ema_decay=DECAY)
    target = sf.AveragedModule(wrapper(ours), model)
    _step(model, ours)
    _same_tensors(target, averages(ours))


def test_copies_follow_the_copied_optimizer() -> None:
    parts = model, ours, target = _averaged()
    _step(model, ours)
    written = io.BytesIO(pickle.dumps(parts))
    kept = [average.clone() for average in averages(ours)]
    for other, others, its in (copy.deepcopy(parts), pickle.load(written)):
        _step(other, others, 3)
        _same_tensors(its, averages(others))
        _same_tensors(target, kept)


def test_within_a_compiled_function() -> None:
    model, ours, target = _averaged()
    called = torch.compile(lambda inputs: target(inputs) + 1, backend="eager")
    inputs = normal((2, 3), 1)
    for number in range(3):
        _step(model, ours, number)
        with torch.no_grad():
            torch.testing.assert_close(called(inputs), target(inputs) + 1)


def test_refused_while_the_averages_are_in_the_weights() -> None:
    model, ours, target = _averaged()
    _step(model, ours)
    with ours.ema_weights():
        for read in (lambda: target(torch.ones(1, 3)), lambda: target.module):
            with pytest.raises(RuntimeError, match=r"AveragedModule: .* leave ema_weights\(\)"):
                read()
    _same_tensors(target, averages(ours))


def test_bad_arguments() -> None:
    model, ours, _ = _averaged()
    adam: Any = torch.optim.Adam(model.parameters())
    with pytest.raises(TypeError, match="must be a Stackelberg optimizer, got Adam"):
        sf.AveragedModule(adam, model)
    holding: Any = SimpleNamespace(optimizer=ours)
    with pytest.raises(TypeError, match=r"pass what it wraps, its \.optimizer"):
        sf.AveragedModule(holding, model)
    a_list: Any = list(model.parameters())
    with pytest.raises(TypeError, match=r"must be an nn\.Module, got list"):
        sf.AveragedModule(ours, a_list)
    average: Any = "average"
    with pytest.raises(ValueError, match="'shared', 'own', 'copied', 'averaged', got 'average'"):
        sf.AveragedModule(ours, model, buffers=average)


def test_parameters_without_an_average_are_named() -> None:
    model = _model()
    groups = [
        {"params": model[0].parameters(), "ema_decay": DECAY},
        {"params": model[2].parameters()},
    ]
    ours = sf.StackelbergAdam(groups, lr=0.1, backend="cpu")
    with pytest.raises(ValueError, match=r"'2\.weight' is in a param group without ema_decay"):
        sf.AveragedModule(ours, model)
    with pytest.raises(ValueError, match=r"'0\.weight' is in no param group"):
        sf.AveragedModule(ours, _model())
    target = sf.AveragedModule(ours, model[0])
    _step(model, ours)
    ours.param_groups[0]["ema_decay"] = None
    _step(model, ours, 1)
    with pytest.raises(ValueError, match="'weight' is in a param group without ema_decay"):
        target(torch.ones(1, 3))


def test_parameters_without_memory_are_refused() -> None:
    model, ours, _ = _averaged()
    larger = nn.Sequential(model, nn.Linear(2, 2, device="meta").requires_grad_(False))
    with pytest.raises(TypeError, match=r"'1\.weight' is sharded or has no memory"):
        sf.AveragedModule(ours, larger)


def test_sharded_parameters_are_refused() -> None:
    from torch import distributed
    from torch.distributed.tensor import DTensor, Replicate
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        mesh = distributed.init_device_mesh("cpu", (2,))
        model = nn.Linear(3, 2, bias=False)
        model.weight = nn.Parameter(DTensor.from_local(torch.ones(2, 3), mesh, [Replicate()]))
        ours = sf.StackelbergAdam(model.parameters(), lr=0.1, backend="cpu", ema_decay=DECAY)
        with pytest.raises(TypeError, match=r"'weight' is sharded .* within ema_weights\(\)"):
            sf.AveragedModule(ours, model)
    finally:
        distributed.destroy_process_group()


def test_nothing_is_copied_where_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ours, target = _averaged()
    _step(model, ours)
    target(torch.ones(1, 3))
    monkeypatch.setattr(Tensor, "copy_", lambda *_: pytest.fail("a copy"))
    within = [param.data_ptr() for param in target.module.parameters()]
    for number in itertools.islice(itertools.count(1), 3):
        _step(model, ours, number)
        assert [param.data_ptr() for param in target.module.parameters()] == within
