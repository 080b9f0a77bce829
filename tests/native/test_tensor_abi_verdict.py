"""An unknown torch ends a child at most, and one child is enough."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from building import clean_environment
from needs import needs_native

from stackelberg_fused.native import tensor_abi, tensor_abi_verdict
from stackelberg_fused.native import tensor_abi_cache as cache
from stackelberg_fused.native.tensor_abi_cache import Verdict

CHILDREN = {
    # what it does, whether another would come to the same end, what is said of it
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "died of SIGKILL"),
    "failed": ("import sys; sys.exit('no torch')", "status 1: no torch"),
    "silent": ("", "status 0: it wrote nothing"),
    "slow": ("import time; time.sleep(600)", "did not answer in 1 seconds"),
    "another torch": (
        'print("\\nstackelberg_fused\'s verdict: {\\"works\\": true, \\"reason\\": \\"\\", \\"about\\": {}}")',
        "another torch",
    ),
    "nonsense": ('print("\\nstackelberg_fused\'s verdict: {")', "status 0"),
}


@pytest.mark.parametrize("kind", CHILDREN)
def test_what_says_nothing_about_torch_is_not_kept(kind: str) -> None:
    code, reason = CHILDREN[kind]
    found = tensor_abi_verdict._ask(
        [sys.executable, "-c", code], {"torch": "1"}, limit=1 + 99 * (kind != "slow")
    )
    assert (found.works, found.lasts) == (False, False)
    assert reason in found.reason


def test_a_process_that_does_not_start_is_no_error() -> None:
    found = tensor_abi_verdict._ask(["/nonexistent/python"], {})
    assert (found.works, found.lasts) == (False, False)
    assert "could be started" in found.reason


@needs_native
def test_a_child_sees_no_gpu_and_has_no_child(unknown: Path) -> None:
    code = f"""
import json, os
names = ("CUDA_VISIBLE_DEVICES", "STACKELBERG_TENSOR_ABI")
from stackelberg_fused.native import tensor_abi
said = [os.environ[name] for name in names] + [tensor_abi.reading().reason]
print("\\n" + {tensor_abi_verdict._MARK!r} + json.dumps({{"works": False, "reason": str(said), "about": {{}}}}))
"""
    found = tensor_abi_verdict._ask([sys.executable, "-c", code], {})
    assert found.reason == "['', '0', 'STACKELBERG_TENSOR_ABI=0']"


@needs_native
@pytest.mark.slow
def test_an_unknown_torch_is_tried_in_a_real_child(unknown: Path, capfd: Any) -> None:
    found = tensor_abi.reading()
    assert found.abi is not None, found.reason
    assert len(list(unknown.glob("*.json"))) == 1
    assert capfd.readouterr() == ("", "")


@needs_native
@pytest.mark.parametrize("executable", [None, "", "/opt/studio/studio", "frozen"])
def test_an_application_around_python_is_not_started_twice(
    executable: str | None, unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if executable == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(tensor_abi_verdict, "_ask", None)
    found = tensor_abi.reading()
    assert found.abi is None
    assert "not known to be Python" in found.reason
    assert not unknown.exists()


@pytest.mark.slow
@needs_native
def test_processes_that_begin_at_once_share_one_child(tmp_path: Path) -> None:
    """Also children of `multiprocessing`, as ranks are that `torch.multiprocessing.spawn` starts."""
    script = tmp_path / "script.py"
    script.write_text("""
import os, sys, time, multiprocessing
from stackelberg_fused.native import tensor_abi_verdict
from stackelberg_fused.native.tensor_abi_cache import Verdict

def ask(command, about):
    with open(sys.argv[1], "a") as file:
        file.write("asked\\n")
    time.sleep(1)
    return Verdict(False, "in doubt", lasts=False)

def rank(barrier):
    tensor_abi_verdict._ask = ask
    barrier.wait()
    assert tensor_abi_verdict.verdict("lib").reason == "in doubt"

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    ranks = [context.Process(target=rank, args=(barrier,)) for _ in range(3)]
    for process in ranks: process.start()
    for process in ranks: process.join()
    sys.exit(max(process.exitcode for process in ranks))
""")
    asked = tmp_path / "asked"
    done = subprocess.run(
        [sys.executable, str(script), str(asked)],
        env=clean_environment(STACKELBERG_CACHE_DIR=str(tmp_path / "cache")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert asked.read_text() == "asked\n"


@needs_native
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"works": "yes"}',
        b"[" * 100_000,
        b'{"works": true, "reason": ""}',
    ],
)
def test_a_corrupt_file_is_ignored_and_replaced(
    content: bytes, unknown: Path, children: list[Verdict]
) -> None:
    unknown.mkdir()
    path = unknown / cache._name(tensor_abi_verdict.subject("lib"))
    path.write_bytes(content)
    children[:] = [Verdict(False, "sorry")]
    for _ in range(2):
        assert tensor_abi_verdict.verdict("lib") == Verdict(False, "sorry")
    assert list(unknown.glob("*.json")) == [path]


@needs_native
def test_a_file_about_something_else_is_ignored(unknown: Path, children: list[Verdict]) -> None:
    children[:] = [Verdict(False, "second"), Verdict(True)]
    assert tensor_abi_verdict.verdict("lib").works
    mine, other = (
        unknown / cache._name(tensor_abi_verdict.subject(name)) for name in ("lib", "lib2")
    )
    assert mine != other
    other.write_bytes(mine.read_bytes())
    assert tensor_abi_verdict.verdict("lib2").reason == "second"


@needs_native
def test_a_verdict_is_about_the_very_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libtorch_cpu.so"
    library.write_bytes(b"1")
    before = tensor_abi_verdict.subject(str(library))
    assert tensor_abi_verdict.subject(str(library)) == before
    os.utime(library, (1, 1))
    assert tensor_abi_verdict.subject(str(library)) != before
    for where, name in ((torch, "__version__"), (torch.version, "git_version")):
        with monkeypatch.context() as patch:
            before = tensor_abi_verdict.subject(str(library))
            patch.setattr(where, name, "9.9")
            assert tensor_abi_verdict.subject(str(library)) != before


@needs_native
def test_a_folder_that_cannot_be_written_has_a_second_one(
    unknown: Path, children: list[Verdict]
) -> None:
    unknown.write_text("a file, not a folder")
    children[:] = [Verdict(True)]
    for _ in range(2):
        assert tensor_abi_verdict.verdict("lib").works
    assert not children


@needs_native
def test_without_a_place_to_write_no_child_is_started(
    unknown: Path, children: list[Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown.write_text("a file, not a folder")
    monkeypatch.setattr(cache, "_temporary_folder", lambda: None)
    found = tensor_abi_verdict.verdict("lib")
    assert (found.works, found.lasts) == (False, False)
    assert "STACKELBERG_CACHE_DIR" in found.reason


@needs_native
def test_what_does_not_last_is_not_tried_again_at_once(
    unknown: Path, children: list[Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Verdict(False, "killed", lasts=False)
    children[:] = [Verdict(True), killed, killed]
    assert [tensor_abi_verdict.verdict("lib") for _ in range(3)] == [killed] * 3
    assert len(children) == 2
    now = cache.time.time()
    monkeypatch.setattr(cache.time, "time", lambda: now + cache.RETRY_AFTER + 1)
    assert tensor_abi_verdict.verdict("lib") == killed
    assert not tensor_abi_verdict.verdict("lib").works
    assert tensor_abi_verdict.verdict("lib", again=True).works  # as doctor asks
    assert tensor_abi_verdict.verdict("lib").works
    assert not children
