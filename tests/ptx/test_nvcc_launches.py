"""The extension module on the fake runtime: what it says, what it catches, and how it was compiled."""

from __future__ import annotations

import struct
from contextlib import nullcontext

import pytest
from paths import ROOT

from stackelberg_fused.groups.rules import MIXED_RULES, RULES
from stackelberg_fused.native.tables import PROJECT_ARGS, STATISTICS_ARGS, STEP_ARGS

from . import nvcc_build
from .caught_launch import CaughtLaunch, params_of
from .nvcc_build import unavailable
from .nvcc_launches import catching, modules, native_module

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


def step_args(**values: int) -> bytes:
    fields = {name: values.get(name, 0) for name in STEP_ARGS}
    return struct.pack("<" + "".join(STEP_ARGS.values()), *fields.values())


def caught(launch: str, args: bytes) -> CaughtLaunch:
    found: list[CaughtLaunch] = []
    with catching(found.append):
        getattr(native_module(), launch)(args, 0, 0)
    (only,) = found
    return only


def test_device_code_is_compiled_as_in_the_package() -> None:
    listed = ", ".join(f'"{flag}"' for flag in nvcc_build.DEVICE_FLAGS)
    assert listed in (ROOT / "setup.py").read_text()


def test_every_kernel_has_its_module() -> None:
    kernels = [name for text in modules() for name in params_of(text)]
    assert len(kernels) == len(set(kernels))
    plain = sum("step_kernelI" in name for name in kernels)
    assert plain == len(RULES) + 2  # mixed rules, without options and with
    others = ("low_precision", "statistics", "conclude", "project")
    assert len(kernels) == plain + len(others)
    assert all(any(f"{other}_kernel" in name for name in kernels) for other in others)


@pytest.mark.parametrize("rule", [*RULES, MIXED_RULES])
def test_each_rule_launches_its_kernel(rule: int) -> None:
    args = step_args(records=1 << 40, num_tiles=7, rule=rule)
    launch = caught("step", args)
    number = f"n{-rule}" if rule < 0 else str(int(rule))
    assert launch.kernel == f"_ZN2sf11step_kernelILi{number}ELb0EEEvNS_8StepArgsE"
    assert (launch.grid, launch.dynamic_shared, launch.compiler) == (7, 0, "nvcc")
    assert launch.params == args
    assert f".maxntid {launch.threads}, 1, 1" in launch.ptx


@pytest.mark.parametrize(
    "options, kernel",
    [
        ({"zero_grads": 1}, "step_kernelILin1ELb1EE"),
        ({"takes_turns": 1}, "step_kernelILin1ELb1EE"),
        ({"sets": 1 << 40}, "step_kernelILin1ELb1EE"),
        ({"is_low_precision": 1}, "low_precision_kernel"),
    ],
)
def test_options_and_schemes(options: dict[str, int], kernel: str) -> None:
    assert kernel in caught("step", step_args(num_tiles=1, **options)).kernel


@pytest.mark.parametrize(
    "launch, fields", [("statistics", STATISTICS_ARGS), ("project", PROJECT_ARGS)]
)
def test_the_other_launches(launch: str, fields: dict[str, str]) -> None:
    count = 7 if launch == "project" else 8
    layout = struct.Struct("<" + "".join(fields.values()))
    args = bytearray(layout.size)
    name = "num_pieces" if launch == "project" else "num_tiles"
    before = [*fields.values()][: [*fields].index(name)]
    struct.pack_into("<q", args, struct.calcsize("<" + "".join(before)), count)
    found = caught(launch, bytes(args))
    assert f"{launch}_kernel" in found.kernel
    assert (found.grid, found.params) == (count, bytes(args))


def test_what_the_executor_raises_comes_out_and_the_next_launch_is_caught() -> None:
    def refuse(launch: CaughtLaunch) -> None:
        raise KeyError(launch.kernel)

    with pytest.raises(KeyError, match="step_kernel"), catching(refuse):
        native_module().step(step_args(num_tiles=1), 0, 0)
    assert caught("step", step_args(num_tiles=1)).grid == 1


@pytest.mark.parametrize(
    "tiles, device, message",
    [
        (1, 0, "nobody catches launches"),
        (1, 1, "there is one device"),
        (0, 0, "invalid configuration argument"),
    ],
)
def test_refusals(tiles: int, device: int, message: str) -> None:
    found: list[CaughtLaunch] = []
    with (
        pytest.raises(RuntimeError, match=message),
        nullcontext() if "nobody" in message else catching(found.append),
    ):
        native_module().step(step_args(num_tiles=tiles), device, 0)
    assert not found
