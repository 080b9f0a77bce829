"""What every test runs under: one seed, no warnings left over, skips that say why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from quick_interpreter import patch_once_per_launch, refuse_integer_masks

from stackelberg_fused.backends.triton import is_interpreting

LARGE_GIB = 12  # the largest takes 9

# one example may build several optimizers; what it takes depends on the machine, not on the example
hypothesis.settings.register_profile(
    "stackelberg", deadline=None, max_examples=60, derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("stackelberg")

if is_interpreting():
    patch_once_per_launch()
    refuse_integer_masks()


def _why_no_gpu() -> str:
    if torch.cuda.is_available():
        return ""
    return "torch sees no NVIDIA GPU on this machine"


def _why_not_large() -> str:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "how much memory is free cannot be read here"
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    return "" if free >= LARGE_GIB else f"{free:.1f} GiB of memory are free, {LARGE_GIB} are needed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for marker, reason in (("gpu", _why_no_gpu()), ("large", _why_not_large())):
        if not reason:
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _same_seed_one_thread() -> Iterator[None]:
    """Tensors here are small: threads only make the tests wait for each other. Tests of threads ask for more."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
