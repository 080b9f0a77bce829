"""`verify` and the ulp arithmetic behind it: right is accepted, wrong is not."""

import math

import pytest
import torch

from stackelberg_fused import cli
from stackelberg_fused.backends.cpu import CpuBackend
from stackelberg_fused.groups.rules import Rule, rule_of
from stackelberg_fused.tools import verify
from stackelberg_fused.tools.parity import ULP_BOUNDS, ulp, ulps_off

CPU = torch.device("cpu")


class OffByTwenty(CpuBackend):
    """The CPU backend, but one element of each parameter ends up 20 ulp away."""

    def step(self, work) -> int:
        launches = super().step(work)
        for slot in work.table.slots:
            if slot.local.numel():
                flat = slot.local.detach().reshape(-1)
                flat[-1] += 20 * ulp(flat[-1])
        return launches


def test_ulp_is_the_distance_to_the_next_float() -> None:
    x = torch.tensor([1.0, 1.5, 2.0, 3.9, 1e-30, 6e38 / 2, 1e-40, 0.0])
    above = torch.nextafter(x, torch.tensor(math.inf))
    assert torch.equal(ulp(x), above - x)


def test_the_benchmark_judges_alike() -> None:
    from stackelberg_fused.benchmarks import parity as judge

    x = torch.randn(1000).exp()
    assert torch.equal(judge.ulp(x), ulp(x))
    assert {"param": judge.ULPS["p"], **judge.ULPS}.items() - {("p", 8.0)} <= ULP_BOUNDS.items()


def test_ulps_off() -> None:
    one = torch.ones(3)
    assert ulps_off(one, one, one) == 0
    assert ulps_off(torch.nextafter(one, one + 1), one, one) == 1
    nan, inf = torch.tensor([math.nan]), torch.tensor([math.inf])
    assert ulps_off(nan, nan, nan) == ulps_off(inf, inf, inf) == 0
    assert ulps_off(nan, one[:1], one[:1]) == ulps_off(inf, one[:1], one[:1]) == math.inf
    assert ulps_off(torch.empty(0), torch.empty(0), torch.empty(0)) == 0


@pytest.mark.parametrize("case", verify.CASES)
def test_the_cpu_backend_passes(case: str) -> None:
    verdict = verify.check("cpu", CpuBackend(), CPU, case)
    assert verdict.passed, verdict.worst
    assert verdict.worst.keys() & {"param", "steps"}


def test_every_rule_has_a_case() -> None:
    seen = Rule(0)
    for case in verify.CASES:
        optimizer = verify._build(case, verify._parameters(CPU, case), "reference")
        for group in optimizer.param_groups:
            seen |= rule_of(group)
    assert [rule.name for rule in Rule if rule not in seen] == []


class OneCodeOff(CpuBackend):
    """The CPU backend, but one number of each parameter's state, or of what is beside it, is another one."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def step(self, work) -> int:
        launches = super().step(work)
        for slot in work.table.slots:
            found = work.state[slot.param].get(self._name)
            if found is not None and found.numel():
                found.view(-1)[-1] = 3 if found.view(-1)[-1] > 60 else 100
        return launches


@pytest.mark.parametrize(
    "case, name",
    [
        ("8 bits, split8", "exp_avg_sq_code"),
        ("8 bits, split8", "exp_avg_code"),
        ("8 bits, split8", "remainder"),
        ("8 bits, stochastic", "exp_avg_sq_scale"),
        ("bfloat16, kahan", "exp_avg_sq"),
        ("bfloat16, split16", "remainder"),
    ],
)
def test_one_wrong_number_is_seen(case: str, name: str) -> None:
    assert not verify.check("wrong", OneCodeOff(name), CPU, case).passed


@pytest.mark.parametrize("case", ["AdamW", "SGD"])
def test_a_wrong_backend_fails(case: str) -> None:
    verdict = verify.check("wrong", OffByTwenty(), CPU, case)
    assert not verdict.passed
    assert verdict.worst["param"] > 8


def test_the_command_reports_failure(monkeypatch, capsys) -> None:
    monkeypatch.setattr(verify, "SIZES", (0, 17, 4097))
    monkeypatch.setattr(verify, "CASES", {"AdamW": verify.CASES["AdamW"]})
    assert cli.main(["verify"]) == 0
    assert "all available backends agree" in capsys.readouterr().out
    monkeypatch.setattr(verify, "CpuBackend", lambda isa: OffByTwenty(isa))
    assert cli.main(["verify"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out
    assert out.rstrip().endswith("FAILED")


def test_the_command_counts_the_elements_of_each_path(monkeypatch, capsys) -> None:
    monkeypatch.setattr(verify, "SIZES", (4096, 100))
    names = ("AdamW", "8 bits, split8")
    monkeypatch.setattr(verify, "CASES", {name: verify.CASES[name] for name in names})
    assert cli.main(["verify"]) == 0
    counts = capsys.readouterr().out.split("elements by path: ")[1:]
    isas = [label for label, *_ in verify.contestants(verify.backends()) if label.startswith("cpu")]
    assert len(counts) == len(isas)
    for label, text in zip(isas, counts, strict=True):
        whole, rest = 4 * 4096, 4 * 100
        vectors = whole if label == "cpu (avx512)" else 0
        taken = f"{whole + rest} in place, {vectors} vectors, {whole + rest - vectors} chunks"
        assert text.splitlines()[0] == taken


def test_the_command_line_lists_its_commands(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)
    with pytest.raises(SystemExit) as stop:
        cli.main(["no-such-command"])
    assert stop.value.code == 2


def test_output_is_narrow_and_takes_one_thread(monkeypatch, capsys) -> None:
    monkeypatch.setattr(verify, "SIZES", (0, 17))
    threads = []
    real = verify.check

    def check(*arguments) -> verify.Verdict:
        threads.append(torch.get_num_threads())
        verdict = real(*arguments)
        if len(threads) > len(verify.CASES):  # a backend that is far off in every quantity
            verdict.worst = dict.fromkeys(verdict.worst, 1234.5)
        return verdict

    monkeypatch.setattr(verify, "check", check)
    torch.set_num_threads(2)
    assert cli.main(["verify"]) == int(len(list(verify.contestants(verify.backends()))) > 1)
    assert set(threads) == {1}
    assert torch.get_num_threads() == 2
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    assert cli.main(["verify", "--threads", "2"]) == 1
    assert threads[-1] == 2
