"""What Triton would compile kernels for: it is asked, and told not to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

from . import triton_launches
from .triton_launches import triton


class Asked(NamedTuple):
    """A kernel that a launch needs.

    Attributes:
        kernel: the name of the function.
        arguments: by name what is known of those that are passed: the type, as "*fp32" or "i64", and what else their
            values told, as that an address is divisible by 16.
        constants: the values of the others.
        options: of the compiler.
    """

    kernel: str
    arguments: Mapping[str, tuple[str, str]]
    constants: Mapping[str, Any]
    options: tuple[tuple[str, Any], ...]


@contextmanager
def asked_to_compile() -> Iterator[list[Asked]]:
    """Within this context nothing is compiled or launched, and the list grows by what would be."""
    found: list[Asked] = []

    def refuse(compile: dict[str, Any], fn: Any, **more: Any) -> bool:
        found.append(_asked(fn.name, compile))
        return True

    # of a device that has no kernels yet
    new_device = patch.object(triton_launches, "DEVICE", triton_launches.DEVICE + 1000)
    hook = patch.object(triton.knobs.runtime, "jit_cache_hook", refuse)
    with new_device, hook, triton_launches.catching(_nothing_is_launched):
        yield found


def _nothing_is_launched(launch: Any) -> None:
    raise AssertionError(launch)


def _asked(name: str, compile: Mapping[str, Any]) -> Asked:
    signature, (attributes,) = compile["signature"], compile["configs"]
    told = {path[0]: repr(value) for path, value in attributes.items()}
    types = {
        argument: (kind, told.get(i, "[]"))
        for i, (argument, kind) in enumerate(signature.items())
        if kind != "constexpr"
    }
    names = [*signature]
    constants = {names[path[0]]: value for path, value in compile["constants"].items()}
    chosen = "num_warps", "num_ctas", "num_stages", "enable_fp_fusion"
    options = tuple((option, compile[option]) for option in chosen)
    return Asked(name.rsplit(".", 1)[-1], types, constants, options)
