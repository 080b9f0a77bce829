"""Settings that were given and reach no parameter draw one warning that says what to write instead."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import stackelberg_fused as sf

CLASSES = [sf.StackelbergAdam, sf.StackelbergAdamW, sf.StackelbergSGD]


def _layers(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(3, 4, dtype=dtype), nn.Linear(4, 2, dtype=dtype)


def _groups(*layers: nn.Module, **head: Any) -> list[dict[str, Any]]:
    body, last = layers or _layers()
    return [
        {"params": list(body.parameters())},
        {"params": list(last.parameters()), "role": "head", **head},
    ]


@contextmanager
def _warned() -> Iterator[list[str]]:
    """What is said within; each time, whether or not the same line said it before."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages.extend(str(warning.message) for warning in caught)


def _steps(optimizer: Any, count: int = 1, **how: Any) -> None:
    for _ in range(count):
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.requires_grad:
                    param.grad = torch.ones_like(param)
        optimizer.step(**how)


class Wrapper(torch.optim.Optimizer):
    """As wrappers do that are optimizers: torch's constructor fills their defaults into every group."""

    def __init__(self, params: Any, kind: Any, **options: Any) -> None:
        super().__init__(params, {"lr": options["lr"], "radius": 0.05})
        self.base = kind(self.param_groups, **options)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_wrapper_that_writes_rates_loses_the_ratio(kind: Any) -> None:
    with pytest.warns(UserWarning, match=r"head_lr_ratio=10 has no effect.*'lr': 0\.01") as seen:
        wrapper = Wrapper(_groups(), kind, lr=1e-3, head_lr_ratio=10)
    assert seen[0].filename == __file__
    assert len(seen) == 1
    assert [group["lr"] for group in wrapper.base.param_groups] == [1e-3, 1e-3]
    with _warned() as messages:
        _steps(wrapper.base, 3)
    assert messages == []


def test_factories_that_scale_the_rates_that_they_write() -> None:
    groups = _groups(lr=2.5e-4)
    groups[0]["lr"] = 1e-3
    with pytest.warns(UserWarning, match="every head group came with an lr of its own"):
        sf.StackelbergAdamW(groups, lr=1e-3, head_lr_ratio=10)


@pytest.mark.parametrize("lr", [1e-3, torch.tensor(1e-3)])
def test_a_head_at_the_body_s_rate(lr: Any) -> None:
    with pytest.warns(UserWarning, match="has no effect"):
        sf.StackelbergAdamW(_groups(lr=lr), lr=1e-3, head_lr_ratio=10)


@pytest.mark.parametrize(
    "head, options",
    [
        ({}, {"head_lr_ratio": 10}),
        ({}, {}),
        ({"lr": 1e-3}, {}),  # nobody asked for a ratio
        ({"lr": 1e-3}, {"head_lr_ratio": 1}),
        ({"lr": 0.05}, {"head_lr_ratio": 10}),  # a rate that the head alone has is meant
        ({"lr": torch.tensor(0.01)}, {"head_lr_ratio": 10}),
    ],
)
def test_rates_that_are_meant(head: dict[str, Any], options: dict[str, Any]) -> None:
    with _warned() as messages:
        _steps(sf.StackelbergAdamW(_groups(**head), lr=1e-3, **options), 2)
    assert messages == []


def test_following_the_advice_ends_the_warning() -> None:
    with _warned() as messages:
        wrapper = Wrapper(_groups(lr=0.01), sf.StackelbergAdamW, lr=1e-3, head_lr_ratio=10)
        _steps(wrapper.base)
        _steps(Wrapper(_groups(lr=0.05), sf.StackelbergAdamW, lr=1e-3).base)
    assert messages == []


def test_one_head_group_that_takes_the_ratio_is_enough() -> None:
    groups = [*_groups(lr=1e-3), {"params": nn.Linear(2, 2).parameters(), "role": "head"}]
    with _warned() as messages:
        _steps(sf.StackelbergAdamW(groups, lr=1e-3, head_lr_ratio=10))
    assert messages == []


@pytest.mark.parametrize("kind", CLASSES)
def test_a_ratio_without_a_head(kind: Any) -> None:
    body, _ = _layers()
    with pytest.warns(UserWarning, match=r"head_lr_ratio=30 .* no param group.*split_body_head"):
        optimizer = kind(body.parameters(), lr=1e-3, head_lr_ratio=30)
    with _warned() as messages:
        _steps(optimizer, 3)
    assert messages == []


@pytest.mark.parametrize("lr", [None, 0.5])
def test_a_head_that_is_added_later_is_not_spoken_of_again(lr: float | None) -> None:
    body, head = _layers()
    own = {} if lr is None else {"lr": lr}
    with pytest.warns(UserWarning, match="has no effect.*no param group has role 'head'"):
        optimizer = sf.StackelbergAdamW(body.parameters(), lr=1e-3, head_lr_ratio=30)
    with _warned() as messages:
        optimizer.add_param_group({"params": head.parameters(), "role": "head", **own})
        _steps(optimizer)
    assert messages == []
    assert optimizer.param_groups[1]["lr"] == (lr or 0.03)


@pytest.mark.parametrize("is_thawed", [True, False])
def test_a_frozen_head(is_thawed: bool) -> None:
    layers = _layers()
    layers[1].requires_grad_(False)
    with _warned() as messages:
        optimizer = sf.StackelbergAdamW(_groups(*layers), lr=1e-3, head_lr_ratio=30)
        layers[1].requires_grad_(is_thawed)
        _steps(optimizer, 2)
    said = "head_lr_ratio=30 has no effect: every parameter of the head is frozen"
    assert [m.startswith(said) for m in messages] == ([] if is_thawed else [True])


@pytest.mark.parametrize(
    "options, names",
    [
        ({"max_grad_norm": {"head": 0.1}}, "max_grad_norm names"),
        ({"update_every": {"body": 2, "head": 3}}, "update_every names"),
        ({"constraint": {"head": sf.Box(-1, 1)}}, "constraint names"),
        ({"ema_decay": {"head": 0.9}}, "ema_decay names"),
        ({"state_dtype": {"head": "bfloat16"}}, "state_dtype names"),
        (
            {"max_grad_norm": {"head": 1.0}, "update_every": {"head": 3}},
            "update_every, max_grad_norm name",
        ),
    ],
)
def test_a_role_that_no_group_has(options: dict[str, Any], names: str) -> None:
    with _warned() as messages:
        optimizer = sf.StackelbergAdamW(_layers()[0].parameters(), lr=1e-3, **options)
        _steps(optimizer, 4)
    assert [m.startswith(f"{names} the role 'head', which no param group") for m in messages] == [
        True
    ]
    with _warned() as messages:
        _steps(sf.StackelbergAdamW(_groups(), lr=1e-3, **options))
    assert messages == []


def test_the_body_s_role_and_values_that_say_nothing() -> None:
    head = {"params": _layers()[1].parameters(), "role": "head"}
    with pytest.warns(UserWarning, match="constraint names the role 'body'"):
        _steps(sf.StackelbergAdamW([head], constraint={"body": sf.NonNegative()}))
    with _warned() as messages:
        _steps(
            sf.StackelbergAdamW(
                _layers()[0].parameters(),
                update_every={"body": 2, "head": 1},
                ema_decay={"head": None},
                max_grad_norm={"body": 1.0},
            )
        )
    assert messages == []


def test_a_norm_that_is_set_before_the_first_step() -> None:
    optimizer = sf.StackelbergAdamW(_layers()[0].parameters())
    optimizer.max_grad_norm = {"head": 1.0}
    with pytest.warns(UserWarning, match="max_grad_norm names the role 'head'"):
        _steps(optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_master_of_exact_weights(dtype: torch.dtype) -> None:
    optimizer = sf.StackelbergAdamW(_layers(dtype)[0].parameters(), master="split16")
    with _warned() as messages:
        _steps(optimizer, 2)
    assert len(messages) == 1
    assert messages[0].startswith("master='split16' has no effect: the parameters that it is for")
    assert str(dtype) in messages[0]


def test_a_master_for_part_of_the_model() -> None:
    layers = nn.Linear(3, 4, dtype=torch.bfloat16), nn.Linear(4, 2)
    with _warned() as messages:
        _steps(sf.StackelbergAdamW(_groups(*layers), master="stochastic"))
        frozen = nn.Linear(3, 3).requires_grad_(False)
        _steps(sf.StackelbergAdamW(frozen.parameters(), master="stochastic"))
    assert messages == []
    with pytest.warns(UserWarning, match="master='kahan' has no effect"):
        _steps(
            sf.StackelbergAdamW(_groups(*layers), master={"body": "stochastic", "head": "kahan"})
        )


def test_a_model_that_is_moved_before_the_first_step() -> None:
    model = nn.Linear(3, 4)
    with _warned() as messages:
        optimizer = sf.StackelbergAdamW(model.parameters(), master="stochastic")
        model.to(torch.bfloat16)
        _steps(optimizer)
    assert messages == []


@pytest.mark.parametrize("given", [{}, {"master": None}], ids=["default", "given"])
@pytest.mark.parametrize("kind", CLASSES)
def test_bfloat16_without_a_master(kind: Any, given: dict[str, Any]) -> None:
    """A configuration passes the default as well: a `None` that was given says nothing more than one that was not."""
    model = nn.Linear(3, 4, dtype=torch.bfloat16)
    named = kind(model.named_parameters(), **given)
    with pytest.warns(UserWarning, match=r"'weight' of .* and 1 others: .*'stochastic'.*'split16'"):
        _steps(named)
    with _warned() as messages:
        _steps(named, 3)
        _steps(kind(model.parameters(), master="stochastic"))
        _steps(kind(nn.Linear(3, 4, dtype=torch.float16).parameters()))
        kind(model.parameters())
    assert messages == []
    by_role = kind(_groups(*_layers(torch.bfloat16)), master={"body": "split16"})
    with pytest.warns(UserWarning, match=r"parameter 0 of param group 1 \(head\) and 1 others"):
        _steps(by_role)


def test_frozen_bfloat16_is_not_trained() -> None:
    base, adapter = nn.Linear(3, 4, dtype=torch.bfloat16).requires_grad_(False), nn.Linear(3, 2)
    with _warned() as messages:
        _steps(sf.StackelbergAdamW([*base.parameters(), *adapter.parameters()]))
    assert messages == []


def test_a_warning_that_is_an_error_comes_before_anything_is_modified() -> None:
    layers = _layers()
    layers[1].requires_grad_(False)
    before = copy.deepcopy(layers[0].state_dict())
    optimizer = sf.StackelbergAdamW(_groups(*layers), head_lr_ratio=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="no effect"):
            _steps(optimizer)
    assert all(torch.equal(now, before[name]) for name, now in layers[0].state_dict().items())
    assert not optimizer.state[layers[0].weight]
    _steps(optimizer)  # it was said
    assert not torch.equal(layers[0].weight, before["weight"])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_do_not_repeat_it(again: Any) -> None:
    layers = _layers()
    layers[1].requires_grad_(False)
    optimizer = sf.StackelbergAdamW(_groups(*layers), head_lr_ratio=5.0)
    with _warned() as messages:
        _steps(again(optimizer))
    assert len(messages) == 1
    with _warned() as messages:
        _steps(optimizer)
        _steps(again(optimizer))
    assert len(messages) == 1


@pytest.mark.parametrize("role", ["body", "head"])
def test_steps_of_one_role(role: str) -> None:
    optimizer = sf.StackelbergAdamW(_groups(), head_lr_ratio=5.0, max_grad_norm={"head": 1.0})
    with _warned() as messages:
        _steps(optimizer, role=role)
    assert messages == []


def test_every_step_of_an_alternating_optimizer() -> None:
    layers = _layers()
    groups = _groups(*layers, lr=1e-3)
    with _warned() as messages:
        optimizer = sf.StackelbergSGD(groups, lr=1e-3, head_lr_ratio=5, mode="alternating")
        for _ in range(2):
            optimizer.step(lambda: layers[1](layers[0](torch.ones(3))).sum().backward())
    assert len(messages) == 1


def test_empty_groups_of_a_head() -> None:
    body, head = _layers()
    groups = [
        {"params": body.parameters()},
        {"params": [], "role": "head"},
        {"params": head.parameters(), "role": "head"},
        {"params": [], "role": "head"},
    ]
    with _warned() as messages:
        optimizer = sf.StackelbergAdamW(groups, lr=0.1)
        _steps(optimizer, 2)
    assert messages == []
    twin = copy.deepcopy(optimizer)
    _steps(twin)


def test_a_schedule_that_scales_rates_before_the_first_step_is_no_other_rate() -> None:
    body, head = _layers()
    groups = [
        {"params": [body.weight], "lr": 0.8e-3},
        {"params": [body.bias], "lr": 0.9e-3},
        {"params": head.parameters(), "role": "head", "lr": 5e-3},
    ]
    with _warned() as messages:
        optimizer = sf.StackelbergAdamW(groups, lr=1e-3, head_lr_ratio=5)
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.1)
        _steps(optimizer)
    assert messages == []
