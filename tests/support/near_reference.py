"""One step of a backend beside one step of the reference from the same bits: within the tolerances?"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from checks import (
    all_params,
    assert_close,
    assert_same_bits,
    plain,
)
from tolerances import INTERPRETED_PARAM, STEP
from torch import Tensor


def synchronize(optimizer: Any, reference: Any) -> None:
    """Give the reference the bits of the other's parameters and state."""
    for p, q in zip(all_params(optimizer), all_params(reference), strict=True):
        q.data.copy_(p.data)
    reference.load_state_dict(optimizer.state_dict())


class Before:
    """Parameters and state before a step, to compare the step of both optimizers afterwards."""

    def __init__(self, optimizer: Any, reference: Any, exact_fma: bool) -> None:
        self._optimizer, self._reference = optimizer, reference
        self._exact_fma = exact_fma
        self._values = [
            (plain(p), {n: plain(v) for n, v in optimizer.state[p].items()})
            for p in all_params(optimizer)
        ]

    def assert_same_step(self, what: str) -> None:
        """Compare what both have now; all parameters at once, and one by one where that fails."""
        compared: dict[str, list[tuple[Tensor, Tensor, Tensor, str]]] = defaultdict(list)
        groups = [group for group in self._reference.param_groups for _ in group["params"]]
        pairs = zip(all_params(self._optimizer), all_params(self._reference), strict=True)
        for number, ((p, q), group) in enumerate(zip(pairs, groups, strict=True)):
            old, old_state = self._values[number]
            label = f"{what} parameter {number}"
            if q.grad is None:
                assert_same_bits(p, old, label)
                continue
            actual = {"param": p.detach(), **self._optimizer.state[p]}
            expected = {"param": q.detach(), **self._reference.state[q]}
            assert_same_bits(actual["step"], expected["step"], label)
            exact = self._exact_fma
            for name, scale in scales_of(q.grad, group, old, old_state, expected, exact).items():
                compared[name].append((actual[name], expected[name], scale, label))
        for name, entries in compared.items():
            self._assert_all_close(name, entries)

    def _assert_all_close(
        self, name: str, entries: list[tuple[Tensor, Tensor, Tensor, str]]
    ) -> None:
        tolerance = STEP[name] if self._exact_fma or name != "param" else INTERPRETED_PARAM
        joined = [torch.cat([plain(entry[k]).reshape(-1) for entry in entries]) for k in range(3)]
        try:
            assert_close(*joined, tolerance)
        except AssertionError:
            for actual, expected, scale, label in entries:
                assert_close(actual, expected, scale, tolerance, f"{label} {name}")
            raise


def scales_of(
    grad: Tensor,
    group: dict[str, Any],
    old: Tensor,
    old_state: dict[str, Tensor],
    expected: dict[str, Tensor],
    exact_fma: bool,
) -> dict[str, Tensor]:
    """Return the magnitude that the rounding errors of each quantity of a step are relative to.

    Args:
        grad: the gradient of the step.
        group: the parameter's settings, with its rule.
        old, old_state: the parameter and its state before the step.
        expected: the parameter, as "param", and its state after the step.
        exact_fma: see `INTERPRETED_PARAM`.
    """
    grad = grad.abs()
    if group["rule"] != "adamw":  # as the rule sees it: both terms of the sum are rounded
        grad = grad + group["weight_decay"] * old.abs()
    scales = {}
    for name, value in expected.items():
        if name == "param":
            scales[name] = torch.maximum(value.abs(), (value - old).abs())
            if not exact_fma:
                update = _update_without_cancellation(group, grad, old_state, expected)
                scales[name] = torch.maximum(scales[name], update)
        elif name != "step":
            term = grad.square() if "sq" in name else grad
            scales[name] = torch.maximum(term, old_state[name].abs()) if name in old_state else term
    return scales


def _update_without_cancellation(
    group: dict[str, Any], grad: Tensor, before: dict[str, Tensor], after: dict[str, Tensor]
) -> Tensor:
    """Return what the update would be if the terms of the first moment did not cancel."""
    if group["rule"] == "sgd":
        momentum = before.get("momentum_buffer", torch.zeros_like(grad)).abs() * group["momentum"]
        return group["lr"] * torch.maximum(grad, momentum)
    beta1, beta2 = group["betas"]
    step = float(after["step"])
    second = after["max_exp_avg_sq"] if group["amsgrad"] else after["exp_avg_sq"]
    denom = (second / (1 - beta2**step)).sqrt() + group["eps"]
    first = torch.maximum(grad, before.get("exp_avg", torch.zeros_like(grad)).abs())
    return group["lr"] / (1 - beta1**step) * first / denom
