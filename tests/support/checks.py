"""Comparisons: equality to the last bit with the first difference spelled out, tolerances in ulp, snapshots."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tolerances import SEVERAL_STEPS, Tolerance, ulp
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def plain(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU, of the local shard where there is one."""
    return getattr(tensor, "_local_tensor", tensor).detach().cpu().contiguous().clone()


def bits(tensor: Tensor) -> Tensor:
    flat = plain(tensor).reshape(-1)
    return flat.view(_BITS[flat.element_size()])


def assert_same_bits(actual: Tensor, expected: Tensor, what: str = "") -> None:
    """Equal shape, dtype and bits; else the coordinate, the bits and the values of the first difference."""
    assert actual.shape == expected.shape, (
        f"{what}: shape {actual.shape}, expected {expected.shape}"
    )
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, expected {expected.dtype}"
    a, b = bits(actual), bits(expected)
    if torch.equal(a, b):
        return
    # which NaN it is does not count: the sign and payload of one are not defined by any operation here
    x, y = plain(actual).reshape(-1), plain(expected).reshape(-1)
    different = ((a != b) & ~(x.isnan() & y.isnan())).nonzero()
    if not len(different):
        return
    i = int(different[0])
    raise AssertionError(
        f"{what}: {len(different)} of {len(a)} elements differ, first at {i}: "
        f"{float(x[i])!r} ({int(a[i]):#x}), expected {float(y[i])!r} ({int(b[i]):#x})"
    )


def assert_same_optimizers(actual: Any, expected: Any, what: str = "") -> None:
    """Parameters and state of two optimizers over parameters in the same order, to the last bit."""
    pairs = zip(all_params(actual), all_params(expected), strict=True)
    for number, (a, b) in enumerate(pairs):
        label = f"{what} parameter {number}"
        assert_same_bits(a, b, label)
        assert_same_state(actual.state.get(a, {}), expected.state.get(b, {}), label)


def assert_agree(ours: Any, torchs: Any) -> None:
    """To the bit where the reference runs; a kernel rounds otherwise, and over several steps that adds up."""
    if ours.backend == "reference":
        assert_same_optimizers(ours, torchs)
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)


def assert_same_state(actual: dict[str, Any], expected: dict[str, Any], what: str = "") -> None:
    """Return what a step depends on; torch keeps no step count for SGD."""
    names = {n for s in (actual, expected) for n, v in s.items() if v is not None and n != "step"}
    for name in sorted(names):
        assert_same_bits(actual[name], expected[name], f"{what} {name}")
    if "step" in actual and "step" in expected:
        assert float(actual["step"]) == float(expected["step"]), f"{what} step"


def all_params(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def assert_close(
    actual: Tensor, expected: Tensor, scale: Tensor, tolerance: Tolerance, what: str = ""
) -> None:
    """Within a tolerance; NaN and infinity where they are expected and nowhere else."""
    a, b = plain(actual), plain(expected)
    off = (a.double() - b.double()).abs() / ulp(plain(scale)).double()
    same = (a == b) | (a.isnan() & b.isnan())
    wrong = (~same & ~(off <= tolerance.ulps)).reshape(-1).nonzero()
    if len(wrong):
        i = int(wrong[0])
        raise AssertionError(
            f"{what}: {len(wrong)} of {a.numel()} elements are off by more than {tolerance.ulps} ulp of "
            f"{tolerance.scale}, first at {i}: {float(a.reshape(-1)[i])!r}, expected "
            f"{float(b.reshape(-1)[i])!r}, off by {float(off.reshape(-1)[i]):.2f} ulp"
        )


def compare_gathered(
    options: Any,
    params: list[torch.nn.Parameter],
    steps: Iterable[list[Tensor | None]],
    backend: Any = "cpu",
    **more: Any,
) -> Any:
    """Step with gradients exactly as given, and contiguous copies of all with contiguous copies of them."""
    twins = [
        torch.nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in params
    ]
    ours = options.ours(params, backend=backend, **more)
    contiguous = options.ours(twins, backend="cpu", flatten=False)
    for grads in steps:
        for p, q, grad in zip(params, twins, grads, strict=True):
            p.grad = grad
            q.grad = None if grad is None else grad.clone(memory_format=torch.contiguous_format)
        ours.step()
        contiguous.step()
    assert_same_optimizers(ours, contiguous)
    return ours


class Snapshot:
    """Everything that a refused call must leave as it was: parameters, state, step counts, settings, gradients."""

    def __init__(self, optimizer: Any, more: Iterable[Tensor] = ()) -> None:
        self._optimizer = optimizer
        self._more = list(more)
        self._taken = self._take()

    def _take(self) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = [("launches", self._optimizer.launches)]
        for i, group in enumerate(self._optimizer.param_groups):
            for k, p in enumerate(group["params"]):
                label = f"group {i} parameter {k}"
                found.append((label, plain(p)))
                found.append((f"{label} version", p._version))
                for name, value in sorted(self._optimizer.state.get(p, {}).items()):
                    found.append((f"{label} {name}", plain(value)))
        found += [(f"tensor {i}", plain(t)) for i, t in enumerate(self._more)]
        return found

    def assert_unchanged(self, versions: bool = True) -> None:
        """With or without the tensors' version counters."""
        now = self._take()
        assert [name for name, _ in now] == [name for name, _ in self._taken]
        for (name, after), (_, before) in zip(now, self._taken, strict=True):
            if name.endswith("version") and not versions:
                continue
            if isinstance(before, Tensor):
                assert_same_bits(after, before, name)
            else:
                assert after == before, name
