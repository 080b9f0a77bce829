"""Slots, records, tiles and spans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import (
    SIZES,
    groups_of,
    set_gradients,
    sizes_for,
)
from checks import assert_same_bits

import stackelberg_fused as sf
from stackelberg_fused.engine.placement import collect_slots
from stackelberg_fused.groups.hyperparameters import Hyperparameters
from stackelberg_fused.layout.slot import Span
from stackelberg_fused.layout.table import Table
from stackelberg_fused.numerics.codec import join, split


def _table(groups: list[dict[str, Any]]) -> Table:
    optimizer = sf.StackelbergAdamW(groups, backend="reference")
    (slots,) = collect_slots(optimizer.param_groups).values()
    return Table(slots, Hyperparameters(optimizer.param_groups))


@pytest.mark.parametrize("num_groups", [1, 2, 7, 465])
def test_spans_split_body_and_head(num_groups: int) -> None:
    table = _table(groups_of(sizes_for(num_groups)))
    everything, body, head = (table.spans[role] for role in (None, "body", "head"))
    assert everything == Span(0, len(table.slots), 0, len(table.tiles))
    assert body == Span(0, head.first_slot, 0, head.first_tile)
    assert head == Span(body.last_slot, len(table.slots), body.last_tile, len(table.tiles))
    assert {slot.role for slot in table.slots[: body.last_slot]} <= {"body"}
    assert {slot.role for slot in table.slots[body.last_slot :]} <= {"head"}
    for span in (body, head):
        records = table.tiles["record"][span.first_tile : span.last_tile]
        assert ((records >= span.first_slot) & (records < span.last_slot)).all()


@pytest.mark.parametrize("order", [("head", "body"), ("body", "head", "body", "head")])
def test_head_comes_last_whatever_the_order_of_groups(order: tuple[str, ...]) -> None:
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(i + 1))], "role": r} for i, r in enumerate(order)
    ]
    table = _table(groups)
    roles = [slot.role for slot in table.slots]
    assert roles == sorted(order)
    expected = [i for role in ("body", "head") for i, r in enumerate(order) if r == role]
    assert [slot.group for slot in table.slots] == expected


@pytest.mark.large
@pytest.mark.xdist_group("large")  # one at a time
def test_more_than_32_bits_of_elements() -> None:
    """NumPy's zeros, unlike torch's, take no memory until they are written: the gradient is free."""
    size = 2**31 + 17
    value, grad = (torch.from_numpy(np.zeros(size, np.float32)) for _ in range(2))
    param = torch.nn.Parameter(value)
    grad[0] = grad[2**31 - 1] = grad[-1] = 1.0
    optimizer = sf.StackelbergSGD([param], lr=1.0, backend="cpu", flatten=False)
    param.grad = grad
    optimizer.step()
    assert [param[i].item() for i in (0, 2**31 - 1, -1)] == [-1.0] * 3
    assert [param[i].item() for i in (1, 2**31, -2)] == [0.0] * 3


@pytest.mark.large
@pytest.mark.xdist_group("large")
def test_more_than_32_bits_of_elements_in_fewer_bits() -> None:
    """Parameter, remainder, codes and scales, each in an arena or at an address of its own, past 2**31."""
    size = 2**31 + 17
    value, grad = (
        torch.from_numpy(np.zeros(size, np.int16)).view(torch.bfloat16) for _ in range(2)
    )
    param = torch.nn.Parameter(value)
    sentinels = torch.tensor([0, 2**31 - 1, 2**31, size - 1])
    grad[sentinels] = torch.tensor([1.0, 2.0, -3.0, 1 + 2**-7], dtype=torch.bfloat16)
    how = {"momentum": 0.5, "master": "split8", "state_dtype": "8bit", "float32_state": "none"}
    optimizer = sf.StackelbergSGD([param], lr=1 + 2**-9, backend="cpu", flatten=False, **how)
    param.grad = grad
    optimizer.step()
    state = optimizer.state[param]
    # what has no gradient stays zero, and so do its codes
    assert int(param.view(torch.int16).count_nonzero()) == len(sentinels)
    assert int(state["momentum_buffer_code"].count_nonzero()) == len(sentinels)
    assert int(state["momentum_buffer_scale"].count_nonzero()) == 3  # two of them share a block
    found = join(param.detach()[sentinels], state["remainder"][sentinels])
    assert_same_bits(found, split_of_24_bits(grad[sentinels].float() * -(1 + 2**-9)))


def split_of_24_bits(weight: torch.Tensor) -> torch.Tensor:
    """float32 as `master="split8"` keeps it."""
    return join(*split(weight, 8))


def test_spans_where_one_role_has_nothing_but_empty_tensors() -> None:
    empty = torch.nn.Parameter(torch.ones(0))
    table = _table(
        [{"params": [torch.nn.Parameter(torch.ones(3))]}, {"params": [empty], "role": "head"}]
    )
    assert table.spans["head"] == Span(1, 2, 1, 1)
    optimizer = sf.StackelbergSGD(
        [{"params": [torch.nn.Parameter(torch.ones(3))]}, {"params": [empty], "role": "head"}],
        backend="cpu",
    )
    empty.grad = torch.ones(0)
    optimizer.step(role="head")
    assert optimizer.launches == 0
    assert optimizer.state[empty]["step"] == 1


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_records_hold_the_addresses_of_what_they_update(rule: str) -> None:
    groups = groups_of([list(SIZES), [7]])
    cls = {"adamw": sf.StackelbergAdamW, "sgd": sf.StackelbergSGD}[rule]
    settings = {"amsgrad": True} if rule == "adamw" else {"momentum": 0.9}
    optimizer = cls(groups, backend="cpu", **settings)
    set_gradients(optimizer.param_groups, 0)
    optimizer.step()
    (unit,) = optimizer._engine.units
    fields = {"exp_avg": "momentum_buffer"} if rule == "sgd" else {}
    for slot, record in zip(unit.table.slots, unit.table.records, strict=True):
        p, state = slot.param, optimizer.state[slot.param]
        assert record["numel"] == p.numel()
        assert record["param"] == p.data_ptr()
        assert record["grad"] == p.grad.data_ptr()
        for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            tensor = state.get(fields.get(name, name))
            assert record[name] == (0 if tensor is None else tensor.data_ptr())
        row = unit.table.rows.rows[record["row"]]
        if rule == "sgd":
            assert row["step_size"] == np.float32(groups[slot.group]["lr"])


def test_state_lies_as_the_parameters_do() -> None:
    optimizer = sf.StackelbergAdamW(groups_of(sizes_for(7)), backend="cpu", amsgrad=True)
    set_gradients(optimizer.param_groups, 0)
    optimizer.step()
    records = optimizer._engine.units[0].table.records
    records = records[records["numel"] > 0]
    assert (np.diff(records["param"]) == -(-records["numel"][:-1] // 64) * 256).all()
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert (np.diff(records[name]) == np.diff(records["param"])).all()


def test_step_counts_are_elements_of_one_tensor() -> None:
    groups = groups_of(sizes_for(7))
    optimizer = sf.StackelbergAdamW(groups, backend="cpu")
    set_gradients(optimizer.param_groups, 0)
    optimizer.step()
    steps = [optimizer.state[p]["step"] for g in optimizer.param_groups for p in g["params"]]
    assert all(s.shape == () and s.dtype == torch.float32 and s == 1 for s in steps)
    assert len({s.untyped_storage().data_ptr() for s in steps}) == 1


def test_one_table_per_device_and_dtype() -> None:
    params = [
        torch.nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.float64) * 2
    ]
    optimizer = sf.StackelbergAdamW(params)
    assert optimizer.backend == "cpu+reference"
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.launches == 1
    assert all(optimizer.state[p]["exp_avg"].dtype == p.dtype for p in params)


def test_duplicates_in_a_group_warn_and_step_once() -> None:
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = sf.StackelbergSGD([p, p], lr=1.0)
    once = sf.StackelbergSGD([q], lr=1.0)
    for param, opt in ((p, optimizer), (q, once)):
        param.grad = torch.ones(3)
        opt.step()
    assert torch.equal(p, q)
