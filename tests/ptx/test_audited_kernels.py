"""What is audited (tests/support/compile_triton.py) is what optimizers launch: nothing is compiled to find out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from cases import set_gradients
from scaled import new_scaler

import stackelberg_fused as sf

from .backends import PtxTritonBackend
from .launch_cases import CASES, SCHEMES, give_gradients, of_scheme
from .triton_launches import unavailable

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
if not unavailable():
    import compile_triton
    from compiled_triton import COMPILED

    from .specialisations import Asked, asked_to_compile


@pytest.fixture(scope="module")
def audited() -> list[Asked]:
    with asked_to_compile() as asked, compile_triton.compiling_only():
        for compile_ in compile_triton.kernels(COMPILED[90]).values():
            compile_()
    return asked


@pytest.fixture(scope="module")
def launched() -> list[Asked]:
    """By steps of every kind."""
    backend = PtxTritonBackend(lambda caught: None)
    with asked_to_compile() as asked:
        for case in CASES.values():
            optimizer = case.make(backend)
            give_gradients(optimizer, 1, flat="grads" in case.more)
            optimizer.step(**case.step)
        for scheme in SCHEMES:
            optimizer = of_scheme(scheme)(backend)
            set_gradients(optimizer.param_groups, 1)
            optimizer.step()
        for cls in (sf.GradScaler, torch.amp.GradScaler):
            for more in ({"max_grad_norm": 0.5}, {"constraint": sf.L2Ball(1.5)}):
                optimizer = CASES["one rule"]._replace(more=more).make(backend)
                set_gradients(optimizer.param_groups, 1)
                new_scaler(cls).step(optimizer)
    return asked


def seen(asked: Iterable[Asked]) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """By kernel and argument, what was known of it."""
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for one in asked:
        for name, known in one.arguments.items():
            found.setdefault((one.kernel, name), set()).add(known)
    return found


def test_arguments_are_known_alike(audited: list[Asked], launched: list[Asked]) -> None:
    assert seen(launched) == seen(audited)


def test_compilers_options_are_the_same(audited: list[Asked], launched: list[Asked]) -> None:
    options = [{(one.kernel, one.options) for one in asked} for asked in (launched, audited)]
    assert options[0] == options[1]


def test_constants_are_audited(audited: list[Asked], launched: list[Asked]) -> None:
    """All but rules, formats and tasks, of which there are too many combinations."""
    free = {"RULES", "FORMATS", "MODE"}
    found = [
        {
            (one.kernel, name, repr(value))
            for one in asked
            for name, value in one.constants.items()
            if name not in free
        }
        for asked in (launched, audited)
    ]
    assert found[0] <= found[1]


def _shifted(value: Any) -> Any:
    """Tensors that are not aligned, in dicts or alone."""
    if isinstance(value, dict):
        return {name: _shifted(one) for name, one in value.items()}
    if not isinstance(value, torch.Tensor):
        return value
    return torch.zeros(value.numel() + 1, dtype=value.dtype)[1:]


@pytest.mark.parametrize("first_tile", [0, 1, 16, 17])
def test_values_make_no_other_kernel(
    audited: list[Asked], first_tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORDS", "FLOATS", "DOUBLES", "INTEGERS"):
        monkeypatch.setattr(compile_triton, name, _shifted(getattr(compile_triton, name)))
    options = _shifted(compile_triton.EXTRAS["everything"])
    with asked_to_compile() as asked, compile_triton.compiling_only():
        compile_triton.compile_rules(compile_triton.ADAM, first_tile, **options)
        compile_triton.compile_statistics(**options)
        compile_triton.compile_projection(options["found_inf"])
    assert [one.kernel for one in asked] == ["step_kernel", "statistics_kernel", "project_kernel"]
    known = seen(audited)
    for argument, told in seen(asked).items():
        assert told <= known[argument], argument
