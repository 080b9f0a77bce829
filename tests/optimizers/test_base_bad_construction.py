"""Refusals at construction and in add_param_group: named, and before any parameter has moved."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import OURS, normal, step
from checks import Snapshot, assert_same_bits, assert_same_optimizers
from torch import Tensor, nn

import stackelberg_fused as sf


def _model() -> dict[str, nn.Parameter]:
    return {
        "a": nn.Parameter(normal((4, 4), 1)),
        "b": nn.Parameter(normal(5, 2)),
        "c": nn.Parameter(normal(3, 3)),
    }


def _two(m: dict[str, Any], **head: Any) -> list[dict[str, Any]]:
    return [{"params": [m["a"], m["b"]]}, {"params": [m["c"]], "role": "head", **head}]


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


HEAD = "param group 1 \\(head\\)"
# what is passed for params, made from three good parameters, and what the error has to say
# fmt: off
GROUPS: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "unknown role": (lambda m: _two(m, role="tail"), ValueError, "param group 1: unknown role 'tail'"),
    "unknown rule": (lambda m: _two(m, rule="lion"), ValueError, f"{HEAD}: unknown rule 'lion'"),
    "in two groups": (lambda m: [*_two(m), {"params": [m["a"]]}], ValueError, "0 of param group 2 .* in param group 0"),
    "overlap": (lambda m: [m["a"], nn.Parameter(m["a"].detach()[1])], ValueError, "1 .* parameter 0 .*overlap"),
    "overlap between groups": (
        lambda m: [{"params": [("w", m["a"])]}, {"params": [("v", nn.Parameter(m["a"].detach()))], "role": "head"}],
        ValueError,
        f"'v' of {HEAD} and parameter 'w' of .* overlap|'w' of .* and parameter 'v' of {HEAD} overlap",
    ),
    "interleaved overlap": (
        lambda m: [nn.Parameter(m["a"].detach()[:, ::2]), nn.Parameter(m["a"].detach()[:, 2:])],
        ValueError,
        "overlap in memory",
    ),
    "expanded": (lambda m: [m["a"], nn.Parameter(torch.ones(1).expand(4))], ValueError, "parameter 1 of .*one memory"),
    "sliding": (lambda m: [torch.ones(6).as_strided((3, 3), (1, 1)).requires_grad_()], ValueError, "one memory"),
    "names for some": (lambda m: [("a", m["a"]), m["b"]], ValueError, "param group 0: parameter 1 has no name"),
    "names for some groups": (
        lambda m: [{"params": [("a", m["a"])]}, {"params": [m["b"]]}],
        ValueError,
        "param group 1 \\(body\\): its parameters should be with names",
    ),
    "sparse": (lambda m: [m["a"], nn.Parameter(torch.eye(3).to_sparse())], TypeError, "parameter 1 of .*sparse"),
    "complex": (lambda m: [nn.Parameter(torch.ones(3, dtype=torch.complex64))], TypeError, "parameter 0 .*complex64"),
    "meta": (lambda m: [m["a"], nn.Parameter(torch.ones(3, device="meta"))], ValueError, "parameter 1 of .*meta"),
    "no tensor": (lambda m: [m["a"], 3.0], TypeError, "parameter 1 of .*float"),
    "not a leaf": (lambda m: [m["b"], m["a"] * 2], ValueError, "parameter 1 of .*non-leaf"),
    "a set": (lambda m: [{"params": {m["a"], m["b"]}}], TypeError, "ordered collections"),
    "a tensor": (lambda m: m["a"], TypeError, "iterable of Tensors or dicts"),
    "nothing": (lambda m: [], ValueError, "empty parameter list"),
}
ADAM: dict[str, tuple[dict[str, Any], str]] = {
    "lr": ({"lr": -1e-3}, "invalid lr -0.001"),
    "lr nan": ({"lr": math.nan}, "invalid lr nan"),
    "lr inf": ({"lr": math.inf}, "invalid lr inf"),
    "lr of two": ({"lr": torch.ones(2)}, "lr must have one element, got shape \\(2,\\)"),
    "lr text": ({"lr": "0.1"}, "lr must be a number, got '0.1'"),
    "lr tensor": ({"lr": torch.tensor(-1.0)}, "invalid lr"),
    "weight_decay": ({"weight_decay": -1}, "invalid weight_decay -1"),
    "weight_decay nan": ({"weight_decay": math.nan}, "invalid weight_decay nan"),
    "eps": ({"eps": -1e-8}, "invalid eps"),
    "eps nan": ({"eps": math.nan}, "invalid eps nan"),
    "beta1": ({"betas": (1.0, 0.9)}, "invalid betas\\[0\\] 1.0"),
    "beta2": ({"betas": (0.9, -0.1)}, "invalid betas\\[1\\]"),
    "betas nan": ({"betas": (0.9, math.nan)}, "invalid betas\\[1\\]"),
    "mixed betas": ({"betas": (torch.tensor(0.9), 0.9)}, "betas must be either both floats or both tensors"),
    "beta of two": ({"betas": (torch.ones(2) / 2, torch.ones(2) / 2)}, "betas\\[0\\] must have one element"),
    "one beta": ({"betas": 0.9}, "betas must be a pair"),
    "betas by name": ({"betas": {"a": 0.9, "b": 0.9}}, "betas must be a pair"),
    "betas text": ({"betas": "09"}, "betas must be a pair"),
}
CAUTIOUS: dict[str, tuple[str, dict[str, Any], str]] = {
    "number": ("adamw", {"cautious": 1}, "cautious must be a bool, got 1"),
    "text": ("adamw", {"cautious": "yes"}, "cautious must be a bool, got 'yes'"),
    "tensor": ("adamw", {"cautious": torch.tensor(True)}, "cautious must be a bool"),
    "none in sgd": ("sgd", {"cautious": None}, "cautious must be a bool, got None"),
    "adam": ("adam", {"cautious": True}, "cautious goes with rule 'adamw' only, not with 'adam'"),
    "sgd": ("sgd", {"cautious": True}, "cautious goes with rule 'adamw' only, not with 'sgd'"),
    "rule adam": ("adamw", {"cautious": True, "rule": "adam"}, "cautious .* not with 'adam'"),
    "rule sgd": ("adamw", {"cautious": True, "rule": "sgd"}, "cautious .* not with 'sgd'"),
}
SGD: dict[str, tuple[dict[str, Any], str]] = {
    "momentum": ({"momentum": -0.9}, "invalid momentum"),
    "momentum nan": ({"momentum": math.nan}, "invalid momentum"),
    "dampening": ({"momentum": 0.9, "dampening": math.nan}, "invalid dampening"),
    "nesterov alone": ({"nesterov": True}, "nesterov requires"),
    "nesterov dampened": ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov requires"),
}
# fmt: on
RATIOS = {
    "zero": 0.0,
    "negative": -3.0,
    "nan": math.nan,
    "infinite": math.inf,
    "text": "10",
    "two": torch.ones(2),
}


class Untouched:
    """Parameters that have to be where and what they were."""

    def __init__(self, model: dict[str, nn.Parameter]) -> None:
        self._model = model
        self._before = [(p.data_ptr(), p.detach().clone(), p._version) for p in model.values()]

    def check(self) -> None:
        for p, (address, value, version) in zip(self._model.values(), self._before, strict=True):
            assert (p.data_ptr(), p._version) == (address, version)
            assert_same_bits(p, value)


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("rule", OURS)
def test_params(rule: str, name: str) -> None:
    make, error, match = GROUPS[name]
    model = _model()
    untouched = Untouched(model)
    with pytest.raises(error, match=match):
        OURS[rule](make(model))
    untouched.check()


@pytest.mark.parametrize("in_group", [False, True], ids=["argument", "group"])
@pytest.mark.parametrize(
    "rule, name",
    [(r, n) for r, table in (("adam", ADAM), ("adamw", ADAM), ("sgd", SGD)) for n in table],
)
def test_settings(rule: str, name: str, in_group: bool) -> None:
    settings, match = (SGD if rule == "sgd" else ADAM)[name]
    model = _model()
    untouched = Untouched(model)
    groups, arguments = (_two(model, **settings), {}) if in_group else (_two(model), settings)
    label = HEAD if in_group else "param group 0 \\(body\\)"
    with pytest.raises((ValueError, TypeError), match=f"{label}: {match}"):
        OURS[rule](groups, **arguments)
    untouched.check()


@pytest.mark.parametrize("name", CAUTIOUS)
def test_cautious_groups(name: str) -> None:
    rule, settings, match = CAUTIOUS[name]
    model = _model()
    untouched = Untouched(model)
    with pytest.raises((ValueError, TypeError), match=f"{HEAD}: {match}"):
        OURS[rule](_two(model, **settings))
    if "rule" not in settings and rule == "adamw":
        with pytest.raises(TypeError, match=f"param group 0 \\(body\\): {match}"):
            OURS[rule](_two(model), **settings)
    untouched.check()
    optimizer = OURS[rule]([{"params": [model["a"]]}])
    before, given = Snapshot(optimizer), {"params": [model["b"]], "role": "head", **settings}
    with pytest.raises((ValueError, TypeError), match=f"{HEAD}: {match}"):
        optimizer.add_param_group(dict(given))
    before.assert_unchanged()
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", RATIOS)
def test_ratio(name: str) -> None:
    model = _model()
    untouched = Untouched(model)
    with pytest.raises((ValueError, TypeError), match="head_lr_ratio"):
        sf.StackelbergAdamW(_two(model), head_lr_ratio=RATIOS[name])
    untouched.check()


def test_backends() -> None:
    model = _model()
    untouched = Untouched(model)
    with pytest.raises(
        ValueError, match=r"unknown backend 'gpu', expected 'auto', 'reference', 'cpu'"
    ):
        sf.StackelbergAdamW(_two(model), backend="gpu")
    model["d"] = nn.Parameter(torch.ones(3, dtype=torch.float64))
    groups = [{"params": [("a", model["a"])]}, {"params": [("d", model["d"])], "role": "head"}]
    with pytest.raises(
        ValueError,
        match=f"'d' of {HEAD}: the cpu backend updates parameters of at most 32 bits.*'reference' does",
    ):
        sf.StackelbergAdamW(groups, backend="cpu")
    del model["d"]
    untouched.check()


@pytest.mark.parametrize("name", ["cuda", "triton", "cpu"])
def test_backends_that_cannot_run_here_say_why(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stackelberg_fused.backends import BACKENDS, BackendStatus

    monkeypatch.setattr(
        BACKENDS[name],
        "status",
        classmethod(lambda cls: BackendStatus(name, False, "because of the test")),
    )
    model = _model()
    untouched = Untouched(model)
    with pytest.raises(
        RuntimeError, match=f"backend '{name}' is not available: because of the test"
    ):
        sf.StackelbergAdamW(_two(model), backend=name)
    untouched.check()


@pytest.mark.gpu
def test_the_cpu_backend_refuses_a_cuda_tensor() -> None:
    p = nn.Parameter(torch.ones(3, device="cuda"))
    with pytest.raises(
        ValueError, match=r"parameter 0 of .*cpu backend cannot update parameters on cuda"
    ):
        sf.StackelbergAdamW([p], backend="cpu")


# fmt: off
ADDED: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]], type[Exception], str]] = {
    "known": (lambda m, n: {"params": [m["a"]]}, ValueError, "parameter 0 of param group 2 .*already in param group 0"),
    "overlap": (lambda m, n: {"params": [m["a"].detach()[1].requires_grad_()]}, ValueError, "overlap in memory"),
    "role": (lambda m, n: {"params": [n["a"]], "role": "tail"}, ValueError, "param group 2: unknown role"),
    "lr": (lambda m, n: {"params": [n["a"]], "lr": -1}, ValueError, "param group 2 \\(body\\): invalid lr -1"),
    "names": (lambda m, n: {"params": [("a", n["a"])]}, ValueError, "param group 2 .*names"),
    "dtype": (lambda m, n: {"params": [n["a"].detach().double().requires_grad_()]}, ValueError, "at most 32 bits"),
    "non-leaf": (lambda m, n: {"params": [n["a"] * 2]}, ValueError, "non-leaf"),
    "sparse": (lambda m, n: {"params": [torch.eye(2).to_sparse().requires_grad_()]}, TypeError, "group 2 .*sparse"),
}
# fmt: on


@pytest.mark.parametrize("name", ADDED)
def test_add_param_group(name: str) -> None:
    make, error, match = ADDED[name]
    model, twin, new = _model(), _model(), _model()
    optimizers = [sf.StackelbergAdamW(_two(m), backend="cpu", lr=0.1) for m in (model, twin)]
    step(*optimizers)
    before, untouched = Snapshot(optimizers[0]), Untouched(new)
    with pytest.raises(error, match=match):
        optimizers[0].add_param_group(make(model, new))
    before.assert_unchanged()
    untouched.check()
    step(*optimizers, seed=1)
    assert_same_optimizers(*optimizers)


def test_no_dict() -> None:
    optimizer = sf.StackelbergSGD([nn.Parameter(torch.ones(2))])
    with pytest.raises(TypeError, match="param_group must be a dict"):
        optimizer.add_param_group([nn.Parameter(torch.ones(2))])


def test_disjoint_and_frozen_neighbours_are_accepted() -> None:
    base = normal((4, 6), 1)
    params = [
        nn.Parameter(base[:, :2]),
        nn.Parameter(base[:, 2:]),
        _frozen(torch.ones(3, dtype=torch.int8)),
    ]
    step(sf.StackelbergAdamW(params[:2], backend="cpu"))
    sf.StackelbergAdamW(params, backend="cpu")
