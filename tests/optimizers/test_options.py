"""Constructors whose keyword arguments are spelled once: what is seen of them, and what is refused."""

from __future__ import annotations

import inspect
import re
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor

import stackelberg_fused as sf
from stackelberg_fused.groups.rules import HYPERPARAMETERS
from stackelberg_fused.optimizers.options import ParamGroup

REQUIRED = inspect.Parameter.empty
ADAM = {
    "params": REQUIRED,
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0,
    "amsgrad": False,
}
SGD = {
    "params": REQUIRED,
    "lr": 1e-3,
    "momentum": 0,
    "dampening": 0,
    "weight_decay": 0,
    "nesterov": False,
}
POSITIONAL = {
    sf.StackelbergAdam: ADAM,
    sf.StackelbergAdamW: {**ADAM, "weight_decay": 1e-2},
    sf.StackelbergSGD: SGD,
}
EVERY_CLASS = {
    "maximize": False,
    "foreach": None,
    "differentiable": False,
    "fused": None,
    "head_lr_ratio": 10.0,
    "backend": "auto",
    "flatten": True,
    "max_grad_norm": None,
    "grads": "gather",
    "mode": "simultaneous",
    "release": None,
    "ema_decay": None,
    "update_every": 1,
    "update_every_grads": "latest",
    "constraint": None,
    "master": None,
    "state_dtype": None,
    "float32_state": "vectors",
    "seed": 0,
}
KEYWORDS = {
    sf.StackelbergAdam: {**EVERY_CLASS, "capturable": False, "decoupled_weight_decay": False},
    sf.StackelbergAdamW: {**EVERY_CLASS, "capturable": False, "cautious": False},
    sf.StackelbergSGD: EVERY_CLASS,
}
by_class = pytest.mark.parametrize("cls", POSITIONAL)


def _param() -> Tensor:
    return torch.zeros(3, requires_grad=True)


@by_class
def test_signature_shows_every_argument_with_its_default(cls: type) -> None:
    shown = inspect.signature(cls).parameters.values()
    positional = [(p.name, p.default) for p in shown if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(POSITIONAL[cls].items())
    keywords = {p.name: p.default for p in shown if p.kind is p.KEYWORD_ONLY}
    assert keywords == KEYWORDS[cls]
    assert len(positional) + len(keywords) == len(shown)
    assert all(p.annotation is not REQUIRED for p in shown)


@by_class
def test_types_of_the_constructor_can_be_evaluated(cls: type) -> None:
    """Libraries that make command lines of constructors do so."""
    assert {"params", "lr", "options"} <= set(get_type_hints(cls.__init__))


@by_class
def test_defaults_that_are_given_change_nothing(cls: type) -> None:
    silent, said = cls([_param()]), cls([_param()], **KEYWORDS[cls])
    assert silent.defaults == said.defaults
    assert silent._options == said._options


@by_class
def test_every_keyword_is_documented(cls: type) -> None:
    text = inspect.getdoc(cls) + "\n" + inspect.getdoc(sf.StackelbergAdam)
    # an entry: names with commas between them, and a colon
    entries = re.findall(r"^    ((?:\w+,\s+)*\w+):\s", text, re.MULTILINE)
    documented = {name for entry in entries for name in re.split(r",\s+", entry)}
    assert [name for name in KEYWORDS[cls] if name not in documented] == []


@pytest.mark.parametrize(
    "cls, name",
    [
        (sf.StackelbergAdam, "state_dtyp"),
        (sf.StackelbergAdamW, "decoupled_weight_decay"),
        (sf.StackelbergSGD, "capturable"),
        (sf.StackelbergAdam, "cautious"),
        (sf.StackelbergSGD, "cautious"),
    ],
)
def test_other_keywords_are_refused_by_name(cls: type, name: str) -> None:
    param = _param()
    address = param.data_ptr()
    with pytest.raises(TypeError, match=rf"^{cls.__name__}\(\) got .* argument '{name}'$"):
        cls([param], **{name: True})
    assert param.data_ptr() == address


def test_a_subclass_has_a_signature_of_its_own() -> None:
    class Mine(sf.StackelbergAdamW):
        def __init__(self, params: Any, *, warmup: int, **options: Any) -> None:
            super().__init__(params, **options)

    assert list(inspect.signature(Mine).parameters) == ["params", "warmup", "options"]
    assert Mine([_param()], warmup=3, seed=5).defaults["seed"] == 5
    with pytest.raises(TypeError, match=r"^Mine\(\) got an unexpected keyword argument 'sed'"):
        Mine([_param()], warmup=3, sed=5)


def test_group_dicts_are_typed_with_every_hyperparameter() -> None:
    known = set(get_type_hints(ParamGroup))
    assert known >= {"params", "role", "rule"}.union(*HYPERPARAMETERS.values())
