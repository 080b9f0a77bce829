"""Optimizers whose launches are of every kind, and steps of theirs beside the CPU backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from cases import MIXED, Options, groups_of, normal, set_gradients, sizes_for
from checks import all_params, assert_same_optimizers
from named_schemes import NAMED
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.native.tables import TILE_ELEMENTS

# in the process of tests/triton_kernels/test_machine_code.py, which compiles many of the same kernels
of_triton = pytest.mark.xdist_group("Triton's compiler")
by_compiler = pytest.mark.parametrize("compiler", ["nvcc", pytest.param("triton", marks=of_triton)])


def by_compiler_and(name: str, values: Iterable[str], slow: Collection[str]) -> Any:
    """Each value with each compiler; some take Triton more than a few seconds to compile."""
    every = [pytest.param("nvcc", value) for value in values]
    for value in values:
        marks = [of_triton, *([pytest.mark.slow] if value in slow else [])]
        every.append(pytest.param("triton", value, marks=marks))
    return pytest.mark.parametrize(f"compiler, {name}", every)


ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})


class Case(NamedTuple):
    """An optimizer's options.

    Attributes:
        kinds: of the launches that its first step makes.
        written: a region that one of them writes, which launches without these options do not have or do not write.
        options, more: of the optimizer.
        step: how it is stepped.
    """

    kinds: tuple[str, ...]
    written: str = "param[1]"
    more: dict[str, Any] = {}  # noqa: RUF012
    options: Options = ADAM
    step: dict[str, Any] = {}  # noqa: RUF012

    def make(self, backend: Any) -> Any:
        """The optimizer."""
        groups = groups_of(sizes_for(7), mixed=self.options.mixed)
        return self.options.ours(groups, backend=backend, **self.more)

    @property
    def how(self) -> dict[str, Any]:
        """Of `same_steps`."""
        return {"flat": "grads" in self.more, **self.step}


TURNS = {"update_every": {"body": 3}, "update_every_grads": "mean"}
CLEARS = {"zero_grad": True}
FLAT = {"grads": "flat"}
CASES = {
    "one rule": Case(("step",)),
    "mixed rules": Case(("step",), options=MIXED),
    "counted": Case(("step",), "steps", {"capturable": True}),
    "turns": Case(("step",), "grad_sum[1]", TURNS),
    "turns, counted": Case(("step",), "waited", {**TURNS, "capturable": True}),
    "zeroing": Case(("step",), "grad[1]", FLAT, step=CLEARS),
    "clipped": Case(("statistics", "step"), "digits", {"max_grad_norm": 0.5}),
    "clipped by role": Case(
        ("statistics", "step"), "sums", {"max_grad_norm": {"body": 0.5, "head": 1.0}}
    ),
    "a ball": Case(("step", "project"), "set_sums", {"constraint": {"body": sf.L2Ball(1.5)}}),
    "a simplex": Case(("step", "project"), "moved", {"constraint": {"head": sf.Simplex(1.5)}}),
    "averages": Case(
        ("step", "project"), "ema[1]", {"constraint": sf.L2Ball(1.5), "ema_decay": 0.9}
    ),
    "everything": Case(
        ("statistics", "step", "project"),
        "grad[1]",
        {
            **TURNS,
            **FLAT,
            "capturable": True,
            "max_grad_norm": 1.0,
            "constraint": sf.L2Ball(1.5),
        },
        step=CLEARS,
    ),
}
MIXED_SCHEMES = "several, mixed rules"
SCHEMES = (*NAMED, "several", MIXED_SCHEMES)


def of_scheme(name: str) -> Callable[[Any], Any]:
    """Makes an optimizer of full tiles, ragged ones and rows that end within a block of codes."""
    several = name in ("several", MIXED_SCHEMES)
    named = NAMED["8bit" if several else name]
    sizes = [(TILE_ELEMENTS,), (2, TILE_ELEMENTS), (3, 1500)]

    def make(backend: Any) -> Any:
        params = [
            nn.Parameter(normal(size, i).to(named.scheme.param)) for i, size in enumerate(sizes)
        ]
        how = {"lr": 0.01, "seed": 5, "backend": backend}
        if not several:  # otherwise vectors have float32 state, as by default
            how["float32_state"] = "none"
        sgd = {"params": params[2:], "rule": "sgd", "momentum": 0.9}
        groups = [{"params": params[:2]}, sgd] if name == MIXED_SCHEMES else params
        return sf.StackelbergAdamW(groups, **named.settings, **how)

    return make


def give_gradients(optimizer: Any, number: int, flat: bool) -> None:
    """Some of them none; of flat ones, zero, in the place that they have."""
    params = all_params(optimizer)
    places = [p.grad if flat else None for p in params]
    set_gradients(optimizer.param_groups, number, 3 if number % 2 else 0)
    for p, place in zip(params, places, strict=True):
        if place is not None:
            place.copy_(torch.zeros_like(place) if p.grad is None else p.grad)
            p.grad = place


def same_steps(
    make: Callable[[Any], Any], backend: Any, steps: int = 4, flat: bool = False, **how: Any
) -> None:
    """Steps beside the CPU backend."""
    ours, on_cpu = make(backend), make("cpu")
    for number in range(steps):
        for optimizer in (ours, on_cpu):
            give_gradients(optimizer, number, flat)
            has_head = any(group["role"] == "head" for group in optimizer.param_groups)
            optimizer.step(role="head" if number == 2 and has_head else None, **how)
        assert_same_optimizers(ours, on_cpu, f"step {number}")
        _assert_same_reports(ours.last_step.as_dict(), on_cpu.last_step.as_dict())


def _assert_same_reports(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Norms are float64: what clips is float32, and would hide their lower half."""
    known = [key for key, value in expected.items() if value is not None]
    assert {key: found[key] for key in known} == {key: expected[key] for key in known}
    # where the device counts, the host does not know of a player that it rests
    norms = [key for key in expected if key.startswith("grad_norm") and key not in known]
    assert all(found[key] in (None, 0.0) for key in norms)
    assert found["skipped"] == expected["skipped"]
