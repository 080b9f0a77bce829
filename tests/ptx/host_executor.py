"""Executes caught launches by the CUDA sources as g++ compiled them: proof of the arguments, not of any PTX."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from host_cuda.backend import library

from stackelberg_fused.groups.rules import MIXED_RULES
from stackelberg_fused.native.tables import (
    GRADIENT_STATISTICS,
    PROJECT_ARGS,
    STATISTICS_ARGS,
    STEP_ARGS,
)

from .backends import kind_of
from .caught_launch import CaughtLaunch, params_of

_ARGS = {
    "step": STEP_ARGS,
    "statistics": STATISTICS_ARGS,
    "conclude": STATISTICS_ARGS,
    "project": PROJECT_ARGS,
}
_FACTORS = GRADIENT_STATISTICS.fields["factor"][1]
# flags of a Triton kernel's MODE, see triton_kernels/tables.py, and the arguments that it does not read without them
_NEEDS = {
    "factors": 1,
    "grad_scale": 2,
    "found_inf": 4,
    **dict.fromkeys(("groups", "steps", "readiness", "waited", "arrived"), 8),
    **dict.fromkeys(
        ("sets", "set_sums", "set_digits", "set_factors", "set_tiles_done", "moved"), 64
    ),
}
_TURNS, _ZERO_GRADS, _LOW_PRECISION = 16, 32, 128


def execute(caught: CaughtLaunch) -> None:
    """Do on the host what the launch is to do.

    Raises:
        AssertionError: an address among the arguments is in none of the launch's regions.
    """
    kind = kind_of(caught.kernel)
    args = caught.params if caught.compiler == "nvcc" else _as_struct(kind, caught)
    for name, address in _addresses(kind, args):
        inside = (r.address <= address < r.address + r.nbytes for r in caught.regions)
        assert any(inside), (caught.kernel, name)
    error = getattr(library(), f"sf_host_{kind}")(args)
    assert error is None, error


def _addresses(kind: str, args: bytes) -> Iterator[tuple[str, int]]:
    """Those that a kernel of this kind reads."""
    layout = {n: c for name, code in _ARGS[kind].items() for n, c in _single(name, code)}
    values = struct.unpack("<" + "".join(layout.values()), args)
    for (name, code), value in zip(layout.items(), values, strict=True):
        is_read = kind != "conclude" or name in ("digits", "statistics", "found_inf")
        if code == "q" and value and is_read and not name.startswith(("first_", "num_")):
            yield name, value + _FACTORS * (kind == "step" and name == "statistics")


def _single(name: str, code: str) -> Iterator[tuple[str, str]]:
    """`2d` as two fields."""
    count = int(code[:-1] or 1)
    return ((name + "'" * k, code[-1]) for k in range(count))


def values_of(caught: CaughtLaunch) -> dict[str, int]:
    """What `params` of a Triton kernel holds, by the names of the arguments."""
    params = params_of(caught.ptx)[caught.kernel]
    return {
        name: int.from_bytes(caught.params[p.offset : p.offset + p.size], "little", signed=True)
        for name, p in zip(caught.passed, params, strict=False)
    }


def _as_struct(kind: str, caught: CaughtLaunch) -> bytes:
    """The arguments of a Triton kernel as the struct that the CUDA kernel takes."""
    constants, values = caught.arguments, values_of(caught)
    given = {"step": _step, "statistics": _statistics, "project": _project}[kind](values, constants)
    given["num_pieces" if kind == "project" else "num_tiles"] = caught.grid
    fields = {name: given.get(name, 0) for name in _ARGS[kind]}
    flat = [x for value in fields.values() for x in (value if isinstance(value, list) else [value])]
    return struct.pack("<" + "".join(_ARGS[kind].values()), *flat)


def _read(values: dict[str, int], mode: int, needs: Mapping[str, int]) -> dict[str, int]:
    """The arguments that a kernel reads in this mode."""
    return {
        name: value for name, value in values.items() if name not in needs or mode & needs[name]
    }


def _step(values: dict[str, int], constants: Mapping[str, Any]) -> dict[str, int]:
    mode, rules = constants["MODE"], constants["RULES"]
    given = _read(values, mode, _NEEDS)
    given["ready"] = given.pop("readiness", 0)
    if "factors" in given:
        given["statistics"] = given.pop("factors") - _FACTORS
    return {
        **given,
        "rule": rules[0] if len(rules) == 1 else MIXED_RULES,
        "zero_grads": bool(mode & _ZERO_GRADS),
        "takes_turns": bool(mode & _TURNS),
        "is_low_precision": bool(mode & _LOW_PRECISION),
    }


def _statistics(values: dict[str, int], constants: Mapping[str, int]) -> dict[str, object]:
    mode = constants["MODE"]
    given = _read(values, mode, {name: _NEEDS[name] for name in ("grad_scale", "groups", "waited")})
    if not constants["FINDS"]:
        given["found_inf"] = 0
    return {
        **given,
        "sums": values["sums_of_players"],
        "max_norm": [*(ctypes.c_double * 2).from_address(values["limits"])],
        "joint": constants["JOINT"],
        "takes_turns": bool(mode & _TURNS),
    }


def _project(values: dict[str, int], constants: Mapping[str, int]) -> dict[str, int]:
    return {**values, "found_inf": values["found_inf"] if constants["SKIPPABLE"] else 0}
