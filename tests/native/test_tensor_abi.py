"""A torch is read natively only where all that is read is what Python says; an unknown one ends no process."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from building import COMPILER, clean_environment
from cases import normal
from paths import SUPPORT
from patience import patience
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import stackelberg_fused as sf
from stackelberg_fused.native import tensor_abi, tensor_abi_verdict
from stackelberg_fused.native.change_detection import PythonAddressSnapshot, make_address_snapshot
from stackelberg_fused.native.reader import NativeReader, PythonReader
from stackelberg_fused.native.tensor_abi import find_libtorch, increment_versions
from stackelberg_fused.native.tensor_abi_probe import TensorAbi, make_samples, open_abi
from stackelberg_fused.native.tensor_abi_verdict import Verdict

needs_native = pytest.mark.skipif(
    TensorAbi is None or tensor_abi.tensor_abi() is None,
    reason="needs the extension, and a torch that it can read tensors of",
)


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has asked yet how tensors are read."""
    monkeypatch.setattr(tensor_abi, "_reading", None)
    monkeypatch.delenv("STACKELBERG_TENSOR_ABI", raising=False)


@pytest.fixture
def unknown(undecided: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A torch that the tests have not run; the folder of the cache."""
    monkeypatch.setattr(tensor_abi, "TESTED", ("0.1",))
    monkeypatch.setenv("STACKELBERG_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Verdict]:
    """What children will say, last one first; none is started."""
    answers: list[Verdict] = []
    monkeypatch.setattr(tensor_abi_verdict, "_ask", lambda command, about: answers.pop())
    return answers


# the probe


@needs_native
def test_a_torch_laid_out_otherwise_is_refused() -> None:
    probe, other = torch.zeros(3, 2).t(), torch.zeros(2, 3)
    types, dispatch = (Tensor, nn.Parameter), Tensor.__torch_dispatch__
    with pytest.raises(RuntimeError, match="does not hold its implementation"):
        TensorAbi(types, dispatch, probe, probe._cdata + 8, probe.data_ptr())
    with pytest.raises(RuntimeError, match="not what they are expected"):
        TensorAbi(types, dispatch, probe, probe._cdata, probe.data_ptr() + 4)
    with pytest.raises(RuntimeError, match="not what they are expected"):
        TensorAbi(types, dispatch, other, other._cdata, other.data_ptr())
    with pytest.raises(RuntimeError, match="nowhere is not loaded"):
        TensorAbi(types, dispatch, probe, probe._cdata, probe.data_ptr(), "nowhere")


def test_samples_tell_everything_apart() -> None:
    samples = make_samples()
    gradients = [t.grad for t in samples.values()]
    assert {None} < {g if g is None else g.layout for g in gradients}
    assert torch.sparse_coo in {g.layout for g in gradients if g is not None}
    assert len({t.dtype for t in samples.values()}) > 5
    assert {"cpu", "meta"} == {t.device.type for t in samples.values()}
    assert {0, 1, 2, 3, 7} <= {t.ndim for t in samples.values()}
    dense = [t for t in [*samples.values(), *gradients] if t is not None and not t.is_sparse]
    assert all(t.stride() != t.shape for t in dense if t.ndim)
    offset = [t.storage_offset() for t in dense if t.numel() and t.device.type == "cpu"]
    assert sum(map(bool, offset)) > len(offset) / 2


def build_fake(folder: Path, *flags: str) -> str:
    if not COMPILER:
        pytest.skip("no C++ compiler")
    path = str(folder / f"fake{''.join(flags)}.so")
    source, torchs = str(SUPPORT / "fake_libtorch.cpp"), f'-DTORCH="{find_libtorch()}"'
    command = [
        COMPILER,
        "-std=c++17",
        "-shared",
        "-fPIC",
        *flags,
        torchs,
        source,
        "-o",
        path,
        "-ldl",
    ]
    subprocess.run(command, check=True, timeout=patience(15))
    return path


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A loaded library that passes everything on to libtorch."""
    return ctypes.CDLL(build_fake(tmp_path_factory.mktemp("fake")))


@pytest.fixture
def wrong(fake: Any) -> Iterator[Any]:
    """The name of the function in it that is wrong."""
    name = (ctypes.c_char * 64).in_dll(fake, "wrong")
    yield name
    name.value = b""


@needs_native
def test_functions_that_are_right_are_taken(fake: Any, wrong: Any) -> None:
    assert type(open_abi(fake._name)) is TensorAbi


@needs_native
@pytest.mark.parametrize(
    "name",
    [
        *(f"aoti_torch_get_{what}" for what in ("data_ptr", "dim", "sizes", "strides", "dtype")),
        *("aoti_torch_get_device_type", "aoti_torch_get_device_index", "aoti_torch_get_layout"),
        *("aoti_torch_layout_strided", "aoti_torch_new_tensor_handle", "aoti_torch_assign_tensors"),
        *("bump_version", "grad"),
    ],
)
def test_each_function_that_is_wrong_is_noticed(name: str, fake: Any, wrong: Any) -> None:
    wrong.value = name.encode()
    with pytest.raises(RuntimeError, match=r"native code|not what they|versions were|gradient"):
        open_abi(fake._name)


@needs_native
def test_a_gradient_returned_by_value_costs_a_child_and_no_more(tmp_path: Path) -> None:
    code = """
import ctypes, sys
from stackelberg_fused.native.tensor_abi_verdict import answer
import torch
ctypes.CDLL({path!r})
answer({path!r})
"""
    about = tensor_abi_verdict.subject(find_libtorch())
    found = [
        tensor_abi_verdict._ask(
            [sys.executable, "-c", code.format(path=build_fake(tmp_path, *flags))], about
        )
        for flags in ((), ("-DBY_VALUE",))
    ]
    assert found[0] == Verdict(True)
    assert not found[1].works
    assert found[1].reason


@needs_native
@pytest.mark.parametrize("mode", ["inference", "fake tensors", "meta", "double", "warnings"])
def test_modes_of_the_caller_do_not_matter(mode: str, undecided: None, monkeypatch: Any) -> None:
    monkeypatch.setattr(tensor_abi, "is_tested", lambda version: True)
    random = torch.get_rng_state()
    if mode == "inference":
        with torch.inference_mode():
            found = tensor_abi.reading()
    elif mode == "fake tensors":
        with FakeTensorMode():
            found = tensor_abi.reading()
    elif mode == "meta":
        with torch.device("meta"):
            found = tensor_abi.reading()
    elif mode == "double":
        torch.set_default_dtype(torch.float64)
        found = tensor_abi.reading()
        torch.set_default_dtype(torch.float32)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = tensor_abi.reading()
    assert found.abi is not None, found.reason
    assert torch.equal(random, torch.get_rng_state())


# who is asked


@pytest.mark.parametrize(
    "version, tested",
    [
        ("2.13.0", True),
        ("2.13.7+cu130", True),
        ("2.13.0a0+git1234567", False),
        ("2.13.0rc1", False),
        ("2.130.0", False),
        ("2.1.3", False),
        ("3.0.0", False),
        ("strange", False),
    ],
)
def test_tested_versions_are_releases_of_known_minors(version: str, tested: bool) -> None:
    assert tensor_abi.is_tested(version) is tested


@needs_native
def test_importing_decides_nothing_and_a_known_torch_starts_no_process(tmp_path: Path) -> None:
    code = """
import subprocess, torch
def refuse(*_, **__): raise AssertionError("a process was started")
import stackelberg_fused as sf
from stackelberg_fused.native import tensor_abi
subprocess.Popen.__init__ = refuse
assert tensor_abi._reading is None
tensor_abi.is_tested = lambda version: True
param = torch.nn.Parameter(torch.zeros(3))
optimizer = sf.StackelbergSGD([param], lr=1.0, backend="cpu")
assert tensor_abi._reading.abi is not None, tensor_abi._reading
"""
    command = [sys.executable, "-c", code]
    env = clean_environment()
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_native
def test_a_verdict_is_asked_for_once(unknown: Path, children: list[Verdict]) -> None:
    children[:] = [Verdict(True)]
    found = tensor_abi.reading()
    assert found.abi is not None
    assert "have not run" in found.reason
    assert not children
    tensor_abi._reading = None  # as another process would begin
    assert tensor_abi.reading().abi is not None


@needs_native
def test_a_child_that_died_gives_no_and_the_reason(
    unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(tensor_abi_verdict, "_CHILD", code)
    found = tensor_abi.reading()
    assert found.abi is None
    assert "died of SIGSEGV" in found.reason
    assert found.increment_versions is torch.autograd.graph.increment_version
    monkeypatch.setattr(tensor_abi_verdict, "_ask", None)  # nobody is asked again
    tensor_abi._reading = None
    assert tensor_abi.reading().reason == found.reason


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
    assert len(list(unknown.iterdir())) == 1
    assert capfd.readouterr() == ("", "")


# where no child may be


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


def test_a_child_has_no_child(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("""
import multiprocessing, sys
from stackelberg_fused.native.tensor_abi_verdict import _why_no_child
if __name__ == "__main__":
    print(repr(_why_no_child()))
    for method in sys.argv[1:]:
        with multiprocessing.get_context(method).Pool(1) as pool:
            print(pool.apply(_why_no_child))
""")
    command = [sys.executable, "-W", "ignore", str(script), "spawn", "fork"]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[0] == "''"
    assert [line.partition(";")[0] for line in said[1:]] == ["this is a child itself"] * 2


# the cache


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
    path = tensor_abi_verdict.cache_path(tensor_abi_verdict.subject("lib"))
    path.write_bytes(content)
    children[:] = [Verdict(False, "sorry")]
    for _ in range(2):
        assert tensor_abi_verdict.verdict("lib") == Verdict(False, "sorry")
    assert list(unknown.iterdir()) == [path]


@needs_native
def test_a_file_about_something_else_is_ignored(unknown: Path, children: list[Verdict]) -> None:
    children[:] = [Verdict(False, "second"), Verdict(True)]
    assert tensor_abi_verdict.verdict("lib").works
    mine, other = (
        tensor_abi_verdict.cache_path(tensor_abi_verdict.subject(name)) for name in ("lib", "lib2")
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
def test_without_a_place_to_write_a_verdict_is_for_this_process(
    unknown: Path, children: list[Verdict]
) -> None:
    unknown.write_text("a file, not a folder")
    children[:] = [Verdict(True), Verdict(True)]
    for left in (1, 0):
        assert tensor_abi_verdict.verdict("lib").works
        assert len(children) == left


@needs_native
def test_what_does_not_last_is_not_written(unknown: Path, children: list[Verdict]) -> None:
    children[:] = [Verdict(True), Verdict(False, "killed", lasts=False)]
    assert not tensor_abi_verdict.verdict("lib").works
    assert not unknown.exists()
    assert tensor_abi_verdict.verdict("lib").works


def test_many_write_and_read_at_once(tmp_path: Path) -> None:
    path, about = tmp_path / "deep" / "verdict.json", {"torch": "1" * 100_000}

    def rank(_: int) -> Verdict | None:
        tensor_abi_verdict._write(path, about, Verdict(True))
        return tensor_abi_verdict._read(path, about)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(rank, range(64))) == [Verdict(True)] * 64
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "env, folder",
    [
        ({"STACKELBERG_CACHE_DIR": "/mine", "XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/mine"),
        ({"XDG_CACHE_HOME": "/xdg", "HOME": "/home/me"}, "/xdg/stackelberg_fused"),
        ({"XDG_CACHE_HOME": "xdg", "HOME": "/home/me"}, "/home/me/.cache/stackelberg_fused"),
        ({"HOME": "/home/me"}, "/home/me/.cache/stackelberg_fused"),
        ({"HOME": "me"}, None),
    ],
)
def test_the_folder_is_that_of_the_user(
    env: dict[str, str], folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STACKELBERG_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    path = tensor_abi_verdict.cache_path({})
    assert (path and str(path.parent)) == folder


# what Python does instead


@pytest.mark.parametrize("how", ["switched off", "no module", "no function"])
def test_python_takes_over_with_the_same_bits(
    how: str, undecided: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> str:
        raise RuntimeError("this torch has no aoti_torch_get_dim")

    sides = [[nn.Parameter(normal(size, size)) for size in (3, 1, 70)] for _ in range(2)]
    expected = sf.StackelbergAdamW(sides[0], backend="cpu")
    tensor_abi._reading = None
    if how == "switched off":
        monkeypatch.setenv("STACKELBERG_TENSOR_ABI", "0")
    else:
        monkeypatch.setattr(tensor_abi, "find_libtorch", None if how == "no module" else missing)
    ours = sf.StackelbergAdamW(sides[1], backend="cpu")
    assert type(ours._engine.units[0].gradients._reader) is PythonReader
    assert type(make_address_snapshot(sides[1])) is PythonAddressSnapshot
    for optimizer, params in ((ours, sides[1]), (expected, sides[0])):
        for seed in range(3):
            for p in params:
                p.grad = normal(p.numel(), seed)
            before = [p._version for p in params]
            optimizer.step()
            assert [p._version > v for p, v in zip(params, before, strict=True)] == [True] * 3
    assert all(torch.equal(p, q) for p, q in zip(*sides, strict=True))


@needs_native
def test_a_probe_that_disagrees_leaves_it_to_python(
    undecided: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagreeing() -> None:
        raise RuntimeError("of a tensor native code reads nonsense")

    monkeypatch.setattr(tensor_abi, "is_tested", lambda version: True)
    monkeypatch.setattr(tensor_abi, "open_abi", disagreeing)
    found = tensor_abi.reading()
    assert found.abi is None
    assert "reads nonsense" in found.reason


def test_versions_are_incremented_but_in_inference_mode() -> None:
    with torch.inference_mode():
        without = torch.zeros(2)
    view = torch.zeros(4, requires_grad=True).detach()[1:]
    mine = [nn.Parameter(torch.zeros(2)), without, view, nn.Parameter(torch.zeros(0))]
    for increment in (increment_versions, torch.autograd.graph.increment_version):
        before = [t._version for t in (mine[0], view, mine[3])]
        increment(mine)
        assert [t._version for t in (mine[0], view, mine[3])] == [v + 1 for v in before]


@needs_native
def test_the_native_reader_is_used_where_it_may_be() -> None:
    optimizer = sf.StackelbergAdamW([nn.Parameter(torch.zeros(3))], backend="cpu")
    assert type(optimizer._engine.units[0].gradients._reader) is NativeReader
