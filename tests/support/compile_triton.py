"""Compiles the Triton kernel for GPUs that need not be there: `python compile_triton.py FOLDER ARCH:RULES,RULES,...`.

A script of its own, because a process in which kernels are interpreted cannot compile them. It goes through
`launch_step` as far as the launch itself, so that arguments are specialised and options set as on a GPU. RULES are the
numbers of those that a launch has, as 0 or 0+9, or "every" (mixed_rules.py). Writes ARCH_RULES.cubin, ARCH_RULES.ptx
and ARCH.json with what the kernels were compiled for; and for each of EXTRAS, Adam's kernel that also does this, for
each of FORMATS the one for parameters stored like this, and the kernels of statistics, as ARCH_NAME.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from mixed_rules import EVERY, SHORT, name_of, rules_of
from named_schemes import NAMED
from stackelberg_fused.triton_kernels import (
    low_precision,
    project,
    statistics,
    step,
    tile,
)
from stackelberg_fused.triton_kernels.launch_options import LaunchOptions
from triton.backends.compiler import GPUTarget

from stackelberg_fused.groups.rules import Rule
from stackelberg_fused.groups.schemes import Scheme

WORDS = torch.zeros(64, dtype=torch.int64)  # torch's allocations are aligned, here as on a GPU
FLOATS, DOUBLES = WORDS.view(torch.float32), WORDS.view(torch.float64)
INTEGERS = WORDS.view(torch.int32)
COUNTS = {
    "groups": DOUBLES,
    "steps": FLOATS,
    "ready": INTEGERS,
    "waited": FLOATS,
    "arrived": INTEGERS,
}
JOINT = {
    "joint": {
        "sets": WORDS,
        "set_sums": WORDS,
        "set_digits": WORDS,
        "set_factors": DOUBLES,
        "set_tiles_done": INTEGERS,
        "moved": INTEGERS,
    }
}
SCALED = {"grad_scale": FLOATS, "found_inf": FLOATS}
# arguments of LaunchOptions
EXTRAS = {
    "guarded": {"factors": FLOATS, **SCALED},
    "counted": COUNTS,
    "zeroing": {"zero_grads": True},
    "turns": {"takes_turns": True, "zero_grads": True},
    "joint-sets": JOINT,
    "everything": {
        "factors": FLOATS,
        **SCALED,
        **COUNTS,
        **JOINT,
        "takes_turns": True,
        "zero_grads": True,
    },
}
ADAM = (0,)
# a body of 8 bits with vectors of float32 state
SEVERAL = tuple(sorted((NAMED["split8-8bit"].word, NAMED["split16"].word)))
FORMATS = {**{name: (named.word,) for name, named in NAMED.items()}, "several": SEVERAL}
SOME_FORMATS = ("split16", "8bit")
# what keeps most in registers: float32 beside codes, by a rule of six buffers
WIDEST = (Scheme(torch.float32, None, torch.uint8, False).format,)
WIDEST_RULE = (int(Rule.AMSGRAD | Rule.EMA),)
STATISTICS = {
    "statistics": {},
    "statistics-by_role": {"together": False},
    "statistics-turns": {**SCALED, **COUNTS, "takes_turns": True},
    "statistics-low_precision": {"formats": SEVERAL},
}
PROJECTIONS = {"project": {"found_inf": FLOATS}, "project-always": {}}
ONCE = ("statistics-by_role", "project-always")  # like what costs most
ENTRY_POINTS = {step: "step_kernel", statistics: "statistics_kernel", project: "project_kernel"}


class Driver:
    """The answers to what Triton asks about the GPU before a launch."""

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


class CompileOnly:
    """Stands in for a kernel: indexing and calling it compiles, and launches nothing."""

    def __init__(self, kernel: triton.JITFunction) -> None:
        self._kernel = kernel
        self.compiled: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile_(*args: Any, **kwargs: Any) -> None:
            self.compiled.append(self._kernel.run(*args, grid=grid, warmup=True, **kwargs))

        return compile_


def compile_rules(rules: tuple[int, ...], first_tile: int = 0, **options: Any) -> Any:
    step.launch_step(WORDS, WORDS, FLOATS, first_tile, 1, 0, rules, LaunchOptions(**options))
    return step.step_kernel.compiled[-1]


def compile_statistics(together: bool = True, **options: Any) -> Any:
    sums, found_inf = (WORDS, WORDS, DOUBLES, DOUBLES), options.get("found_inf")
    statistics.launch_statistics(
        WORDS, WORDS, 0, 1, 0, *sums, together, FLOATS, found_inf, LaunchOptions(**options)
    )
    return statistics.statistics_kernel.compiled[-1]


def compile_projection(found_inf: torch.Tensor | None = None) -> Any:
    project.launch_project(WORDS, FLOATS, WORDS, WORDS, 0, 1, DOUBLES, INTEGERS, found_inf)
    return project.project_kernel.compiled[-1]


def kernels(names: Collection[str]) -> dict[str, Callable[[], Any]]:
    """What compiles each kernel of an architecture, by its name; those of `names` last."""
    is_thorough = EVERY in names  # what costs most is compiled for one architecture
    found = {name: partial(compile_rules, ADAM, **options) for name, options in EXTRAS.items()}
    for name in FORMATS if is_thorough else SOME_FORMATS:
        found[name] = partial(compile_rules, ADAM, formats=FORMATS[name])
    if is_thorough:
        everything, several = EXTRAS["everything"], {"formats": SEVERAL}
        found["several-everything"] = partial(compile_rules, ADAM, **several, **everything)
        found["several-rules"] = partial(compile_rules, rules_of(EVERY), **several)
        found["widest"] = partial(compile_rules, WIDEST_RULE, formats=WIDEST, **everything)
        found["rules-everything"] = partial(compile_rules, rules_of(name_of(*SHORT)), **everything)
    for name, options in STATISTICS.items():
        found[name] = partial(compile_statistics, **options)
    for name, options in PROJECTIONS.items():
        found[name] = partial(compile_projection, **options)
    if not is_thorough:
        found = {name: compile_ for name, compile_ in found.items() if name not in ONCE}
    return found | {name: partial(compile_rules, rules_of(name)) for name in names}


@contextmanager
def compiling_only() -> Iterator[list[CompileOnly]]:
    """Within this context the kernels of the library are compiled, and launched by nobody."""
    of = {module: CompileOnly(getattr(module, name)) for module, name in ENTRY_POINTS.items()}
    with ExitStack() as stack:
        for module, name in ENTRY_POINTS.items():
            stack.enter_context(patch.object(module, name, of[module]))
        yield [*of.values()]


def compile_arch(folder: Path, arch: int, names: list[str], launched: list[CompileOnly]) -> None:
    triton.runtime.driver.set_active(Driver(arch))
    for name, compile_ in kernels(names).items():
        compiled = compile_()
        (folder / f"{arch}_{name}.cubin").write_bytes(compiled.asm["cubin"])
        (folder / f"{arch}_{name}.ptx").write_text(compiled.asm["ptx"])
    facts = {
        "threads": 32 * compiled.metadata.num_warps,
        "fp_fusion": [
            kernel.metadata.enable_fp_fusion
            for entry_point in launched
            for kernel in entry_point.compiled
        ],
        "low_precision": {
            "threads": 32 * low_precision.LOW_PRECISION_WARPS,
            "codes": low_precision.CODES_PASS.value,
            "halves": low_precision.HALVES_PASS.value,
        },
        "passes": step.TILE_ELEMENTS // tile.CROWDED_PASS.value,
        # distinct kernels for tile numbers that Triton would by default compile each its own for
        "kernels_per_rule": len(
            {compile_rules(ADAM, first).hash for first in (0, 1, 16, 17, 2**40)}
        ),
    }
    (folder / f"{arch}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    with compiling_only() as entry_points:
        for job in sys.argv[2:]:
            target, _, wanted = job.partition(":")
            compile_arch(Path(sys.argv[1]), int(target), wanted.split(","), entry_points)
