"""The memory layout of the tables, written once per language: C++, NumPy and Triton have to agree to the byte."""

from __future__ import annotations

import importlib
import struct
from types import ModuleType

import numpy as np
import pytest

from stackelberg_fused.groups.rules import RULES, Rule
from stackelberg_fused.native import tables
from stackelberg_fused.native.tables import (
    BALL,
    GROUP,
    JOINT_SET,
    RECORD,
    ROW,
    SIMPLEX,
    TILE,
    TILE_ELEMENTS,
)
from stackelberg_fused.numerics import exact_sum

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


@pytest.mark.parametrize(
    "name", ["RECORD", "TILE", "ROW", "GROUP", "JOINT_SET", "GRADIENT_STATISTICS"]
)
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


@pytest.mark.parametrize("module", NATIVE)
def test_exact_sums(module: str) -> None:
    for name, value in _native(module).EXACT_SUM.items():
        assert getattr(exact_sum, name) == value, name


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


# constants of triton_kernels/tables.py that are not called as their field, whose name another constant has
RENAMED = {
    ("RECORD", "ema"): "EMA_ADDRESS",
    ("ROW", "momentum"): "MOMENTUM_COEFFICIENT",
    ("GROUP", "beta2"): "GROUP_BETA2",
    ("GROUP", "eps"): "GROUP_EPS",
}


@pytest.mark.parametrize("name", ["RECORD", "ROW", "GROUP", "JOINT_SET", "GRADIENT_STATISTICS"])
def test_triton_knows_every_field(name: str) -> None:
    constants, dtype = _triton("tables"), getattr(tables, name)
    # the rule, word 0 of a row, is read through a pointer to the row itself
    for field in set(dtype.names) - {"reserved", *(("rule",) if name == "ROW" else ())}:
        constant = getattr(constants, RENAMED.get((name, field), field.upper()))
        size = dtype.fields[field][0].base.itemsize
        assert constant.value == _word(dtype, field, size), field
    assert ROW.fields["rule"][1] == 0


def test_triton_knows_how_large_tables_are() -> None:
    constants = _triton("tables")
    assert constants.RECORD_WORDS.value * 8 == RECORD.itemsize
    assert constants.TILE_WORDS.value * 8 == TILE.itemsize
    assert constants.TILE_ELEMENTS == TILE_ELEMENTS
    assert constants.ROW_WORDS.value * 4 == ROW.itemsize
    assert constants.GROUP_WORDS.value * 8 == GROUP.itemsize
    assert constants.JOINT_SET_WORDS.value * 8 == JOINT_SET.itemsize
    assert constants.BALL.value == BALL
    # what a launch reads at once: of a record all in use, of a row what comes before the turn
    in_use = RECORD.names[: constants.RECORD_FIELDS.value]
    assert in_use == tuple(name for name in RECORD.names if name != "reserved")
    assert ROW.names[constants.TURN.value :] == ("turn", "step", "reserved")


def test_triton_reads_a_tile() -> None:
    """Its record and count are halves of one word."""
    constants = _triton("tables")
    tile = np.array([(2**31 - 1, 4096, 3, 2**40)], TILE)
    words = tile.view(np.int64)
    assert words[0] & constants.TILE_RECORD.value == tile["record"][0]
    assert words[0] >> constants.TILE_COUNT.value == tile["count"][0]
    assert words[constants.TILE_OFFSET.value] == tile["offset"][0]
    assert words[constants.TILE_WHOLE.value] == tile["whole"][0]


def test_triton_rules() -> None:
    constants = _triton("tables")
    for flag in Rule:
        assert getattr(constants, flag.name).value == flag.value
