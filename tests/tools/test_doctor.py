from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from patience import patience

from stackelberg_fused import build_info
from stackelberg_fused.backends import cpu
from stackelberg_fused.native import tensor_abi
from stackelberg_fused.native.tensor_abi import Reading
from stackelberg_fused.tools import doctor


def call(capsys: pytest.CaptureFixture[str], as_json: bool = False) -> str:
    parser = argparse.ArgumentParser()
    doctor.add_arguments(parser)
    assert doctor.run(parser.parse_args(["--json"] if as_json else [])) == 0
    return capsys.readouterr().out


def row(what: str) -> doctor.Row:
    return next(row for row in doctor.rows() if row.what == what)


def test_one_table_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    text = call(capsys)
    assert max(map(len, text.splitlines())) <= doctor.WIDTH
    for what in (
        "Python",
        "torch",
        "triton",
        "C++ compiler",
        "nvcc",
        "_cpu",
        "_cuda",
        "tensor reading",
        "fewer bits",
        "GPU",
    ):
        assert f"\n{what} " in text
    for backend in ("reference", "cpu", "triton", "cuda"):
        assert f"\nbackend {backend} " in text


def test_json_holds_the_same_rows(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(call(capsys, as_json=True))
    text = call(capsys)
    assert [r["what"] for r in report["rows"] if f"\n{r['what']} " not in text] == []
    assert report["build"] == doctor.build_info()


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stackelberg_fused", "doctor"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=patience(10)
    )
    assert done.returncode == 0, done.stderr
    assert "backend reference" in done.stdout


@pytest.mark.parametrize("name", ["torch", "triton", "_cpu", "_cuda"])
def test_what_does_not_import_is_a_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.importlib.import_module

    def broken(module: str, *rest: str) -> object:
        if module.rpartition(".")[2] == name:
            raise OSError(f"{name}: undefined symbol\nsecond line")
        return real(module, *rest)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    monkeypatch.setattr(doctor, "build_info", lambda: {"version": "0"})
    found = row(name)
    assert not found.ok
    assert found.detail == f"OSError: {name}: undefined symbol"
    assert found.todo


def test_reason_of_the_build_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"modules": {"_cuda": {"built": False, "reason": "nvcc not found"}}}
    monkeypatch.setattr(doctor, "build_info", lambda: info)
    monkeypatch.setattr(doctor, "_try_import", lambda name: ImportError("no such module"))
    assert row("_cuda").detail == "nvcc not found"
    assert "install again" in row("_cuda").todo


def test_a_path_without_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_info, "__file__", "/nonexistent/build_info.py")
    monkeypatch.setattr(doctor, "_try_import", lambda name: ImportError("no such module"))
    assert "not installed" in row("_cpu").detail


def test_no_compiler_no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda program: None)
    monkeypatch.setattr(doctor, "build_info", dict)
    for what in ("C++ compiler", "nvcc"):
        assert not row(what).ok
        assert "install" in row(what).todo


def test_broken_backends_do_not_hide_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list:
        raise RuntimeError("boom")

    monkeypatch.setattr("stackelberg_fused.backends", broken)
    last = list(doctor.rows())[-1]
    assert (last.what, last.ok, last.detail) == ("backends", False, "RuntimeError: boom")


def test_how_tensors_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_abi, "_reading", Reading(object(), "it is known", list))
    assert row("tensor reading") == doctor.Row("tensor reading", True, "natively: it is known")
    monkeypatch.setattr(tensor_abi, "_reading", Reading(None, "it crashed", list))
    found = row("tensor reading")
    assert (found.ok, found.detail) == (False, "by Python: it crashed")
    assert "nothing to do" in found.todo


def test_native_reading_that_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_abi, "_reading", None)
    monkeypatch.setenv("STACKELBERG_TENSOR_ABI", "0")
    found = row("tensor reading")
    assert (found.ok, found.detail) == (False, "by Python: STACKELBERG_TENSOR_ABI=0")
    assert "unset STACKELBERG_TENSOR_ABI" in found.todo


def test_a_broken_torch_is_no_error_of_tensor_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(again: bool) -> Reading:
        raise OSError("libtorch: undefined symbol\nsecond line")

    monkeypatch.setattr(tensor_abi, "reading", broken)
    found = row("tensor reading")
    assert (found.ok, found.detail) == (False, "OSError: libtorch: undefined symbol")


def test_which_path_fewer_bits_take(monkeypatch: pytest.MonkeyPatch) -> None:
    isa = cpu.CpuBackend()._isa
    found = row("fewer bits")
    assert found.ok is (isa == "avx512")
    assert isa in found.detail
    # as on a processor without AVX-512
    monkeypatch.setattr(cpu, "updated_elements", lambda: {"vectors": 0})
    found = row("fewer bits")
    assert not found.ok
    assert found.todo.startswith(doctor.NOTHING)


@pytest.mark.parametrize(
    "archs, capability, loads",
    [
        (["sm_90"], (9, 0), True),
        (["sm_80"], (8, 9), True),  # machine code runs on later minors of its major
        (["sm_89"], (8, 0), False),
        (["sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (12, 0), True),  # PTX runs on everything later
        (["compute_120"], (9, 0), False),
        (["sm_100", "sm_120", "compute_120"], (10, 3), True),
        ([], (9, 0), False),
    ],
)
def test_covers(archs: list[str], capability: tuple[int, int], loads: bool) -> None:
    assert doctor.covers(archs, capability) is loads


@pytest.mark.parametrize(
    "cudart, driver, runs",
    [(13000, 13020, True), (13020, 13000, True), (13000, 12080, False), (12080, 13000, True)],
)
def test_driver_runs(cudart: int, driver: int, runs: bool) -> None:
    assert doctor.driver_runs(cudart, driver) is runs


class FakeDriver:
    """libcuda with one card."""

    status, version = 0, 13000

    def cuDriverGetVersion(self, version) -> int:
        version._obj.value = self.version
        return 0

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGetName(self, name, size: int, device: int) -> int:
        name.value = b"NVIDIA Test"
        return 0

    def cuDeviceGetAttribute(self, value, attribute: int, device: int) -> int:
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, memory, device: int) -> int:
        memory._obj.value = 141 * 2**30
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: fake)
    monkeypatch.setattr(doctor, "build_info", lambda: {"archs": ["sm_90"], "cudart": "13000"})
    return fake


def test_gpu_and_driver(driver: FakeDriver) -> None:
    assert doctor.gpus() == ([doctor.Gpu("NVIDIA Test", (9, 0), 141 * 2**30)], "")
    assert row("GPU").detail == "NVIDIA Test, sm_90, 141 GiB"
    assert row("driver") == doctor.Row("driver", True, "CUDA 13.0; the build needs 13.0")


def test_old_driver(driver: FakeDriver) -> None:
    driver.version = 12080
    assert not row("driver").ok
    assert "12.8, too old" in row("driver").detail
    assert "triton" in row("driver").todo


def test_card_without_code(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "build_info", lambda: {"archs": ["sm_80"], "cudart": "13000"})
    assert not row("GPU").ok
    assert 'STACKELBERG_CUDA_ARCHS="90"' in row("GPU").todo


def test_driver_errors(driver: FakeDriver) -> None:
    driver.status = 100
    assert doctor.gpus()[1].startswith("no GPU")
    driver.status = 999
    assert "error 999" in doctor.gpus()[1]


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(doctor.ctypes, "CDLL", missing)
    assert doctor.driver_version() == 0
    assert not row("GPU").ok
    assert "no NVIDIA driver" in row("GPU").detail
    assert "driver" not in {r.what for r in doctor.rows()}


@pytest.mark.gpu
def test_agrees_with_torch() -> None:
    import torch

    found, why_none = doctor.gpus()
    assert why_none == ""
    assert [gpu.capability for gpu in found] == [
        torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())
    ]


@pytest.mark.parametrize(
    "backends, gpu, todo, said",
    [
        ([], False, "", "No optimizer runs here yet"),
        (["reference"], False, "", 'backend="auto" takes reference for parameters on the CPU.'),
        (
            ["reference", "cpu"],
            False,
            "nothing to do, unless",
            "takes cpu for parameters on the CPU.",
        ),
        (["cpu", "triton"], False, "", "takes cpu for parameters on the CPU."),
        (["cpu", "triton", "cuda"], True, "", "CPU, cuda for parameters on the GPU."),
        (["cpu", "triton"], True, "install nvcc", "triton for parameters on the GPU; the lines"),
        (["cpu"], False, "install nvcc", "the lines with -> say what to do about: nvcc."),
    ],
)
def test_the_conclusion_says_what_runs_and_what_is_left(
    backends: list[str], gpu: bool, todo: str, said: str
) -> None:
    table = [
        doctor.Row("GPU", gpu),
        doctor.Row("nvcc", not todo, "", todo),
        *(doctor.Row(f"backend {name}", True) for name in backends),
        doctor.Row("backend other", False, "is not built"),
    ]
    assert said in doctor.conclusion(table)
    assert doctor.render(table).replace("\n", " ").endswith(doctor.conclusion(table))
