"""The memory layout of the tables, written once per language: C++, NumPy and Triton have to agree to the byte."""

from __future__ import annotations

import importlib
import struct
from types import ModuleType

import numpy as np
import pytest

from stackelberg_fused.groups.rules import MIXED_RULES, RULES, Rule
from stackelberg_fused.native import tables
from stackelberg_fused.native.tables import (
    BALL,
    GRADIENT_STATISTICS,
    GROUP,
    JOINT_SET,
    RECORD,
    ROW,
    SIMPLEX,
    TILE_ELEMENTS,
)

NATIVE = ["_cpu", "_cuda"]


def _native(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"stackelberg_fused.{name}")
    except ImportError as error:
        pytest.skip(f"{name} is not built here: {error}")


def _triton(name: str) -> ModuleType:
    pytest.importorskip("triton", reason="triton is not installed")
    return importlib.import_module(f"stackelberg_fused.triton_kernels.{name}")


def _word(dtype: np.dtype, field: str, word: int) -> int:
    return dtype.fields[field][1] // word


@pytest.mark.parametrize("name", ["RECORD", "ROW", "GROUP", "JOINT_SET", "GRADIENT_STATISTICS"])
@pytest.mark.parametrize("module", NATIVE)
def test_tables(module: str, name: str) -> None:
    native, dtype = _native(module), getattr(tables, name)
    assert dtype.itemsize == getattr(native, f"{name}_BYTES")
    offsets = {
        field: dtype.fields[field][1]
        for field in dtype.names
        if field not in ("reserved", "padding")
    }
    assert offsets == getattr(native, f"{name}_OFFSETS")


@pytest.mark.parametrize("module", NATIVE)
def test_rules(module: str) -> None:
    native = _native(module)
    assert {flag.name: flag.value for flag in Rule} == native.RULE_FLAGS
    assert list(RULES) == sorted(set(native.RULES), key=RULES.index)
    assert len(native.RULES) == len(RULES)
    assert native.TILE_ELEMENTS == TILE_ELEMENTS
    assert native.JOINT_SET_KINDS == (BALL, SIMPLEX)


@pytest.mark.parametrize("name", ["STEP_ARGS", "PROJECT_ARGS", "STATISTICS_ARGS"])
@pytest.mark.parametrize("module", NATIVE)
def test_arguments(module: str, name: str) -> None:
    native, layout = _native(module), getattr(tables, name)
    ends = np.cumsum([struct.calcsize("<" + kind) for kind in layout.values()]).tolist()
    assert ends[-1] == getattr(native, f"{name}_BYTES")
    starts = dict(zip(layout, [0, *ends], strict=False))
    assert starts == getattr(native, f"{name}_OFFSETS")


def test_everything_is_little_endian_and_whole_vectors() -> None:
    assert RECORD.itemsize % 64 == ROW.itemsize % 16 == 0
    assert all(ROW[name].base.itemsize == 4 for name in ROW.names)
    assert all(RECORD[name].base == np.dtype("<i8") for name in RECORD.names)


def test_triton_records_and_tiles() -> None:
    words = _triton("tables")
    assert words.RECORD_WORDS.value * 8 == RECORD.itemsize
    assert words.TILE_WORDS.value == 2
    assert words.TILE_ELEMENTS == TILE_ELEMENTS
    names = {name: name.upper() for name in RECORD.names if name != "reserved"}
    names["ema"] = "EMA_ADDRESS"
    for field, constant in names.items():
        assert getattr(words, constant).value == _word(RECORD, field, 8), field


def test_triton_rows_and_groups() -> None:
    words, rule, row = (_triton(name) for name in ("tables", "update_rule", "row"))
    assert words.ROW_WORDS.value * 4 == ROW.itemsize
    assert ROW.fields["rule"][1] == 0
    names = {name: name.upper() for name in ROW.names if name not in ("rule", "reserved")}
    names["momentum"] = "MOMENTUM_COEFFICIENT"
    for field, constant in names.items():
        holder = row if field in ("turn", "step") else rule
        assert getattr(holder, constant).value == _word(ROW, field, 4), field
    assert row.GROUP_WORDS.value * 8 == GROUP.itemsize
    names = {name: name.upper() for name in GROUP.names if name != "reserved"}
    names |= {name: f"GROUP_{name.upper()}" for name in ("beta2", "eps")}
    for field, constant in names.items():
        assert getattr(row, constant).value == _word(GROUP, field, 8), field


def test_triton_joint_sets() -> None:
    words = _triton("tables")
    assert words.JOINT_SET_WORDS.value * 8 == JOINT_SET.itemsize
    for field in JOINT_SET.names:
        assert getattr(words, field.upper()).value == _word(JOINT_SET, field, 8), field
    assert words.BALL.value == BALL


def test_triton_gradient_statistics() -> None:
    statistics = _triton("statistics")
    words = {"sum_sq": 8, "norm": 8, "total_norm": 8, "factor": 4, "blocks_done": 4}
    for field, word in words.items():
        assert getattr(statistics, field.upper()).value == _word(
            GRADIENT_STATISTICS, field, word
        ), field


def test_triton_rules() -> None:
    words, rule = _triton("tables"), _triton("update_rule")
    for flag in Rule:
        assert getattr(rule, flag.name).value == flag.value
    assert words.MIXED_RULES.value == MIXED_RULES
