"""What every test runs under: one seed, no warnings left over, skips that say why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from quick_interpreter import patch_once_per_launch, refuse_integer_masks
from ranks import Ranks
from selection import quick, spread
from still_running import StillRunning

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="a sample of the tests, in some minutes")
    parser.addoption("--ptx", action="store_true", help="all of tests/ptx, not only a selection")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return

    def say(line: str) -> None:
        reporter.ensure_newline()
        reporter.write_line(line)

    config.pluginmanager.register(StillRunning(say), "still running")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for marker, reason in (("gpu", _why_no_gpu()), ("large", _why_not_large())):
        if not reason:
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    if not config.getoption("--ptx"):
        long = [item for item in items if item.get_closest_marker("ptx")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
    if config.getoption("--quick"):
        kept = quick(items)
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept
    if hasattr(config, "workerinput"):  # one of several processes
        items[:] = spread(items)


@pytest.fixture(autouse=True)
def _same_seed_one_thread() -> Iterator[None]:
    """Tensors here are small: threads only make the tests wait for each other. Tests of threads ask for more."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Several processes that call a function of the test's, see `ranks.py`."""
    found = Ranks()
    yield found
    found.close()
