"""Contestants take part, or give a reason why they do not."""

from __future__ import annotations

import dataclasses

from bench_rows import CONTESTANTS, FAST, TINY, TRIO, entry_of
from stackelberg_fused.benchmarks import peers
from stackelberg_fused.benchmarks.harness import run_row
from stackelberg_fused.benchmarks.preparation import SKIPPED


def test_peers_that_are_not_installed_are_skipped_with_a_reason():
    absent = dataclasses.replace(
        CONTESTANTS["torch-optimi"],
        available=lambda device: peers.installed("no_such_package_here", ("cpu",), device),
    )
    entry = entry_of(run_row(TINY, [*TRIO, absent], FAST, None), "torch-optimi")
    assert entry["status"] == SKIPPED
    assert entry["reason"] == "not installed"


def test_two_distributions_of_one_module_are_told_apart(tmp_path, monkeypatch):
    """A fork that is imported under the name of its original is not taken for it."""
    for name in ("a_module", "a_module_of_none"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    info = tmp_path / "a_fork-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a-fork\nVersion: 1.0\n")
    elsewhere = tmp_path / "elsewhere" / "an_original-1.0.dist-info"
    elsewhere.mkdir(parents=True)
    (elsewhere / "METADATA").write_text("Metadata-Version: 2.1\nName: an-original\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(tmp_path)

    def installed(distribution: str | None) -> tuple[bool, str]:
        return peers.installed("a_module", ("cpu",), "cpu", distribution=distribution)

    assert installed(None) == installed("a-fork") == (True, "")
    for other in ("an-original", "not-there-at-all"):
        assert installed(other) == (
            False,
            "not installed: another distribution provides a_module",
        )
    assert not peers.installed("a_module", ("cuda",), "cpu", distribution="a-fork")[0]


def test_every_contestant_says_whether_it_can_run():
    for contestant in CONTESTANTS.values():
        available, reason = contestant.available("cpu")
        assert available or reason
