"""Rows: what a step's scalars are, when they are computed anew, and that rounding happens once."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from cases import Options, kernel_options
from hypothesis import given
from hypothesis import strategies as st
from tolerances import FLOAT32_SCALAR, HOST_SCALAR

import stackelberg_fused as sf
from stackelberg_fused.groups.hyperparameters import Hyperparameters
from stackelberg_fused.groups.rules import (
    MIXED_RULES,
    RULES,
    Rule,
    rule_of,
)
from stackelberg_fused.layout import rows as rows_module
from stackelberg_fused.layout.rows import HyperparameterRows
from stackelberg_fused.native import change_detection
from stackelberg_fused.numerics.bias_correction import bias_corrections


def _groups(*options: Options, **settings: Any) -> list[dict[str, Any]]:
    """Completed param groups, as an optimizer makes them."""
    groups = [
        {
            "params": [torch.nn.Parameter(torch.ones(1))],
            "rule": o.rule,
            **o.settings,
            **settings,
        }
        for o in options
    ]
    return sf.StackelbergAdamW(groups, lr=0.1, weight_decay=0.0, backend="reference").param_groups


@pytest.fixture(params=["native", "python"], autouse=True)
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows are computed in C++ where there is a compiler, else in Python: to the same bits."""
    if request.param == "python":
        monkeypatch.setattr(rows_module, "update_rows", None)
        monkeypatch.setattr(rows_module, "find_bad_count", None)
        monkeypatch.setattr(change_detection, "NativeContainerSnapshot", None)
    elif rows_module.update_rows is None:
        pytest.skip("_cpu is not built here")
    return request.param


class Rows:
    """Rows and the counts that they are made for."""

    def __init__(self, groups: list[dict[str, Any]], slot_group: list[int]) -> None:
        self.counts = np.zeros(len(slot_group), np.float32)
        self.ready = np.ones(len(slot_group), bool)
        self.hyperparameters = Hyperparameters(groups)
        self.hyperparameters.accept(self.hyperparameters.check())
        self.waited = np.zeros_like(self.counts)
        self.of = HyperparameterRows(
            self.hyperparameters,
            np.array(slot_group, np.int64),
            self.counts,
            self.ready,
            self.waited,
        )

    def at(
        self, counts: list[float] | np.ndarray, ready: list[bool] | np.ndarray | None = None
    ) -> np.ndarray:
        """The row of each slot for the step after `counts`."""
        self.counts[:] = counts
        self.ready[:] = True if ready is None else ready
        self.of.update()
        return self.of.rows[self.of.slot_row]


def _step(rows: Rows, counts: list[float], ready: list[bool] | None = None) -> list[dict[str, Any]]:
    """The row of each slot for the coming step, by name."""
    found = rows.at(counts, ready)
    names = [name for name in found.dtype.names if name != "reserved"]
    return [{name: found[name][i].item() for name in names} for i in range(len(found))]


@given(st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 0.9999]), st.integers(1, 100_000))
def test_bias_corrections_are_exact_to_float64(beta: float, step: int) -> None:
    exact = 1 - Fraction(beta) ** step if step < 300 else Fraction(1 - beta**step)
    factor, root = bias_corrections(beta, beta, step)
    assert math.isclose(root, math.sqrt(exact), rel_tol=HOST_SCALAR)
    assert math.isclose(factor * math.sqrt(exact), 1.0, rel_tol=HOST_SCALAR)


@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_row_of_each_rule(options: Options) -> None:
    groups = _groups(options)
    (row,) = _step(Rows(groups, [0]), [4])
    group = groups[0]
    lr, decay = group["lr"], group["weight_decay"]
    assert row["grad_sign"] == (-1 if group["maximize"] else 1)
    assert row["weight_decay"] == np.float32(decay)
    assert row["rule"] in RULES
    if options.rule == "sgd":
        assert row["step_size"] == np.float32(lr)
        assert row["momentum"] == np.float32(group["momentum"])
        assert row["one_minus_dampening"] == np.float32(1 - group["dampening"])
        return
    beta1, beta2 = group["betas"]
    bias_correction1, bias_correction2 = 1 - beta1**5, 1 - beta2**5
    assert row["param_decay"] == np.float32(1 - lr * decay if options.rule == "adamw" else 1)
    # from the nearer end: beta1 = 0 takes the gradient itself
    assert row["lerp_weight"] == np.float32(1 - beta1 if beta1 > 0.5 else -beta1)
    assert row["beta2"] == np.float32(beta2)
    assert row["one_minus_beta2"] == np.float32(1 - beta2)  # not 1 - float32(beta2)
    assert row["step_size"] == pytest.approx(
        lr * bias_correction2**0.5 / bias_correction1, rel=FLOAT32_SCALAR
    )
    assert row["eps"] == pytest.approx(group["eps"] * bias_correction2**0.5, rel=FLOAT32_SCALAR)


def test_every_rule_occurs_and_has_its_own_flags() -> None:
    plain = {int(rule_of(group)) for group in _groups(*kernel_options())}
    averaged = {int(rule_of(group)) for group in _groups(*kernel_options(), ema_decay=0.9)}
    assert averaged == {rule | Rule.EMA for rule in plain}
    assert plain | averaged == set(RULES)


@pytest.mark.parametrize("decay, weight", [(0.0, -0.0), (0.25, -0.25), (0.5, -0.5), (0.9, 0.1)])
def test_weight_of_an_average_is_from_the_nearer_end(decay: float, weight: float) -> None:
    (row,) = _step(Rows(_groups(Options("sgd"), ema_decay=decay), [0]), [4])
    assert row["ema_weight"] == np.float32(1 - decay if decay > 0.5 else weight)


def test_weight_of_an_average_that_stays_is_from_its_own_end() -> None:
    (row,) = _step(Rows(_groups(Options("sgd"), ema_decay=1.0), [0]), [4])
    assert 0.0 < row["ema_weight"] == np.finfo(np.float32).tiny


def test_rows_of_groups_that_wait_for_their_turn() -> None:
    rows = Rows(_groups(Options("adam"), Options("adam"), update_every=3), [0, 0, 1])
    rows.hyperparameters.groups[1].update(update_every_grads="mean")
    rows.hyperparameters.look()
    rows.hyperparameters.accept([1])
    rows.of.refill()
    seen = []
    for waited in ([0, 0, 0], [2, 2, 3], [4, 4, 5], [4, 2, 4]):
        rows.waited[:] = waited
        seen.append([(row["turn"] & 1, row["turn"] >> 1) for row in _step(rows, [7, 7, 7])])
    assert seen == [
        [(1, 0), (1, 0), (1, 0)],
        [(1, 0), (1, 0), (1, 1)],
        [(0, 0), (0, 0), (0, 1)],
        [(0, 0), (1, 0), (0, 0)],
    ]
    weights = [row["mean_weight"] for row in _step(rows, [7, 7, 7])]
    assert weights == [0.0, 0.0, np.float32(1 / 3)]


@pytest.mark.parametrize(
    "rule, settings, flags",
    [
        ("adamw", {"weight_decay": 0.1}, 0),
        ("adam", {"weight_decay": 0.1}, Rule.L2),
        ("adam", {"weight_decay": 0.0, "amsgrad": True}, Rule.AMSGRAD),
        ("adamw", {"weight_decay": 0.1, "cautious": True}, Rule.CAUTIOUS),
        ("adamw", {"weight_decay": 0.0, "cautious": True}, 0),
        ("sgd", {"weight_decay": 0.0, "nesterov": False}, Rule.SGD),
        ("sgd", {"weight_decay": 0.1, "momentum": 0.5}, Rule.SGD | Rule.L2 | Rule.MOMENTUM),
    ],
)
def test_rule_flags(rule: str, settings: dict[str, Any], flags: int) -> None:
    assert rule_of(_groups(Options(rule, settings))[0]) == flags


def test_one_row_per_group_and_distinct_step_count() -> None:
    rows = Rows(_groups(Options("adam"), Options("adam"), weight_decay=0.0), [0, 0, 0, 1, 1])
    found = _step(rows, [0, 0, 3, 3, 3])
    assert len(rows.of.rows) == 3
    assert found[0] == found[1] != found[2] == found[3] == found[4]
    assert rows.of.slot_row[2] != rows.of.slot_row[3]  # equal today, but a group's row is its own
    assert (rows.of.rule, rows.of.rules) == (0, (0,))


def test_rule_of_a_launch_is_mixed_where_rows_differ() -> None:
    groups = _groups(Options("sgd"), Options("adam"), Options("sgd"), Options("sgd"))
    groups[3]["momentum"] = 0.9
    rows = Rows(groups, [0, 1, 2])
    _step(rows, [0, 0, 0])
    # not that of a group without slots
    assert (rows.of.rule, rows.of.rules) == (MIXED_RULES, (0, Rule.SGD))


def test_rules_of_a_launch_follow_edits() -> None:
    groups = _groups(Options("adam"), Options("sgd"), weight_decay=0.0)
    rows = Rows(groups, [0, 1])
    groups[1]["weight_decay"] = 0.1
    rows.hyperparameters.accept([1])
    rows.of.refill()
    assert rows.of.rules == (0, Rule.SGD | Rule.L2)


def test_the_step_that_creates_a_momentum_buffer_is_not_dampened() -> None:
    rows = Rows(_groups(Options("sgd", {"momentum": 0.9, "dampening": 0.25})), [0, 0])
    first, second = _step(rows, [0, 5], [False, True])
    assert (first["one_minus_dampening"], second["one_minus_dampening"]) == (1.0, 0.75)


def test_dampening_begins_with_the_second_step() -> None:
    """Rows are kept from step to step where counts only advance: not so this one."""
    rows = Rows(_groups(Options("sgd", {"momentum": 0.9, "dampening": 0.25})), [0, 0])
    found = [rows.at([step] * 2, [step > 0] * 2) for step in range(3)]
    seen = [row["one_minus_dampening"].tolist() for row in found]
    assert seen == [[1.0, 1.0], [0.75, 0.75], [0.75, 0.75]]


@given(
    st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=12),
    st.lists(st.integers(0, 1), min_size=4, max_size=4),
)
def test_kept_rows_equal_fresh_ones(history: list[list[bool]], slot_group: list[int]) -> None:
    """Whatever subset of slots steps each time, rows carried along are those computed from nothing."""
    groups = _groups(Options("adam"), Options("sgd", {"momentum": 0.9, "dampening": 0.5}))
    kept = Rows(groups, slot_group)
    counts, ready = np.zeros(4, np.float32), np.zeros(4, bool)
    for stepped in map(np.array, history):
        fresh = Rows(groups, slot_group)
        assert kept.at(counts, ready).tobytes() == fresh.at(counts, ready).tobytes()
        counts[stepped] += 1
        ready[stepped] = True


@pytest.mark.parametrize("count", [-1.0, math.nan, math.inf, 2.0**53])
def test_a_count_that_is_none_is_found(count: float) -> None:
    rows = Rows(_groups(Options("adam")), [0] * 3)
    assert rows.of.bad_count() is None
    rows.counts[:] = [2.0**52, count, count]
    assert rows.of.bad_count() == 1


@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
        min_size=1,
        max_size=5,
    ),
    st.lists(st.integers(0, 2**24), min_size=5, max_size=5),
)
def test_both_languages_compute_the_same_bits(
    betas: list[tuple[float, float]], counts: list[int]
) -> None:
    groups = _groups(*(Options("adamw", {"betas": pair, "weight_decay": 0.1}) for pair in betas))
    here, there = (Rows(groups, list(range(len(betas)))) for _ in range(2))
    native = rows_module.update_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "update_rows", None)
        expected = here.at(counts[: len(betas)]).tobytes()
    if native is not None:
        assert there.at(counts[: len(betas)]).tobytes() == expected


def test_groups_that_differ_in_one_beta_share_no_correction() -> None:
    """Corrections are carried from row to row while betas and count stay the same."""
    pairs = [(0.9, 0.99), (0.9, 0.999), (0.8, 0.999), (0.8, 0.999)]
    groups = _groups(*(Options("adam", {"betas": pair}) for pair in pairs))
    together = _step(Rows(groups, [0, 1, 2, 3]), [1, 1, 1, 2])
    for index, count in enumerate([1, 1, 1, 2]):
        assert together[index] == _step(Rows(groups, [index]), [count])[0]
