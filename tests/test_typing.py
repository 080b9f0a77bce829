"""An editable install as editors and type checkers see it, from a user's project outside the checkout."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from building import clean_environment, copy_of_checkout, needs_setuptools
from paths import ROOT
from patience import patience

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("type checkers"),
    needs_setuptools,
    pytest.mark.skipif(
        not importlib.util.find_spec("pip"), reason="pip is not installed, which makes the install"
    ),
]
CHECKERS = {
    # torch does not annotate Tensor.backward, nor snippets their closures
    "mypy": [
        *(sys.executable, "-m", "mypy", "--strict", "--untyped-calls-exclude=torch"),
        *("--allow-untyped-defs", "--python-executable"),
    ],
    # pyright's own package fetches pyright from npm; this one brings along the same checker, and Node.js
    "basedpyright": [
        *(sys.executable, "-m", "basedpyright"),
        *("--level", "error", "--pythonpath"),
    ],
}
# what snippets of the documents take for granted
GIVEN = """
from typing import Any
import torch
from torch import Tensor, nn
import stackelberg_fused as sf
from stackelberg_fused.optimizers.options import ParamGroup

class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 1)
        self.adapter, self.gate, self.lm_head = nn.Linear(2, 3), nn.Linear(3, 1), self.head

def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()

def evaluate(model: nn.Module) -> None:
    model(inputs)

def make_model() -> Model:
    return model

model = Model()
body, head, params = model.body, model.head, list(model.parameters())
inputs, features, targets = torch.zeros(4, 2), torch.zeros(4, 3), torch.zeros(4, 1)
batches = [(inputs, targets)]
groups = sf.split_body_head(model)
opt = sf.StackelbergAdamW(groups)
old = torch.optim.AdamW(params)
saved = old.state_dict()

def with_counts(saved: dict[str, Any]) -> dict[str, Any]:
    return saved
"""
ACCEPTED = """
sf.StackelbergAdam(model.parameters(), 1e-3, (0.9, 0.99), state_dtype=torch.bfloat16)
sf.StackelbergSGD(model.named_parameters(), momentum=0.9, backend="reference")
sf.StackelbergSGD(params, weight_decay=torch.tensor(0.1))
by_tensor: list[ParamGroup] = [{"params": params, "weight_decay": torch.tensor(0.1), "ema_decay": 0.9}]
sf.StackelbergAdamW([{"params": params, "mine": 1}, {"params": head.weight, "role": "head"}])
typed: list[ParamGroup] = [{"params": params, "rule": "sgd", "master": "kahan"}]
sf.StackelbergAdamW(typed, master={"head": None}, constraint={"head": sf.Box(0.0)})
opt.add_param_group({"params": params, "mine": 1})
torch.optim.lr_scheduler.StepLR(opt.player("head"), 100)
sf.best_response(head, features, targets, nn.functional.mse_loss)
averaged_head: nn.Linear = sf.AveragedModule(opt, head, buffers="own").module
sf.AveragedModule(opt.player("head"), head, into=head, decay=lambda step: 0.9 + 1 / (step + 20)).decay = 0.5
if opt.last_step.grad_norm is None or opt.last_step.clip_factor["body"] < 1:
    opt.step(role="head", zero_grad=True)
"""
REFUSED = """
sf.StackelbergAdamW(params, state_dtype="8bits")
sf.StackelbergAdamW(params, state_dtype={"body": "8bits"})
sf.StackelbergAdam(params, grads="flatt")
sf.StackelbergSGD(params, mode="alternate")
sf.StackelbergAdamW(params, backend="cdua")
sf.StackelbergAdamW(params, master="split4")
sf.StackelbergAdamW(params, float32_state="vector")
sf.StackelbergAdamW(params, update_every_grads="average")
sf.StackelbergAdamW(params, max_grad_norm={"haed": 1.0})
sf.StackelbergAdamW(params, state_dtyp="8bit")
sf.StackelbergAdamW(params, decoupled_weight_decay=True)
sf.StackelbergSGD(params, capturable=True)
sf.StackelbergAdamW(model)
typed: list[ParamGroup] = [{"params": params, "rule": "sdg"}]
average: list[ParamGroup] = [{"params": params, "ema_decay": {"body": 0.9}}]
every: list[ParamGroup] = [{"params": params, "update_every": {"body": 2}}]
master: list[ParamGroup] = [{"params": params, "master": {"head": None}}]
state: list[ParamGroup] = [{"params": params, "state_dtype": {"head": "8bit"}}]
vectors: list[ParamGroup] = [{"params": params, "float32_state": {"head": "none"}}]
inside: list[ParamGroup] = [{"params": params, "constraint": {"head": sf.Box(0.0)}}]
opt.step(role="haed")
opt.zero_grad(role="haed")
opt.player("haed")
opt.last_step.grad_norm + 1
sf.split_body_head(model, tied="heads")
sf.AveragedModule(opt, head, buffers="average")
sf.AveragedModule(params, head)
sf.best_response(head, features, targets, "msee")
sf.stackelberg_value(body, head, inputs, targets, "msee")
sf.curvature(body, head, inputs, targets, "msee")
sf.alternating_step(body, head, loss_fn, opt, inputs, targets, "exactly")
sf.StackelbergAdamWW(params)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the libraries of this one, as a search path: no .pth file of theirs is read."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    site = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    libraries = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    return folder


@pytest.fixture(scope="module")
def installed(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, after the editable install of CONTRIBUTING.md; of a copy, without native modules."""
    copy = copy_of_checkout(tmp_path_factory.mktemp("tree"))
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
    command = [*pip, "install", "--no-index", "--no-build-isolation", "--no-deps", "-q", "-e", "."]
    env = clean_environment(STACKELBERG_BUILD_CPU="0")
    done = subprocess.run(
        command, cwd=copy, env=env, capture_output=True, text=True, timeout=patience(60)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return environment


@pytest.fixture(scope="module", params=CHECKERS)
def check(
    request: pytest.FixtureRequest, installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[int, str]]:
    """Errors of a file by line."""
    name = request.param
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed; make lint does")
    project = tmp_path_factory.mktemp("project")
    command = [*CHECKERS[name], str(installed / "bin" / "python"), "user.py"]

    def errors(code: str) -> dict[int, str]:
        header = "# pyright: basic\n" if name == "basedpyright" else ""
        (project / "user.py").write_text(header + code)
        done = subprocess.run(
            command, cwd=project, capture_output=True, text=True, timeout=patience(60)
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        found = re.findall(r"user\.py:(\d+)\S* (?:- )?error: (.*)", done.stdout)
        assert bool(found) == bool(done.returncode), done.stdout + done.stderr
        return {int(line) - len(header.splitlines()): text for line, text in found}

    return errors


def test_right_uses_have_no_errors(check: Callable[[str], dict[int, str]]) -> None:
    assert check(GIVEN + ACCEPTED) == {}


def test_wrong_strings_and_names_are_errors(check: Callable[[str], dict[int, str]]) -> None:
    lines = (GIVEN + REFUSED).splitlines()
    found = check(GIVEN + REFUSED)
    wrong = range(len(GIVEN.splitlines()) + 1, len(lines))
    assert [lines[i] for i in wrong if i + 1 not in found] == []
    assert set(found) <= {i + 1 for i in wrong}


def test_snippets_of_the_documents_have_no_errors(check: Callable[[str], dict[int, str]]) -> None:
    code, place = GIVEN, {}
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        snippets = re.findall(
            r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE
        )
        for number, snippet in enumerate(snippets, 1):
            code += f"\ndef snippet_{len(place)}(model: Model) -> None:\n{textwrap.indent(snippet, '    ')}"
            place[code.count("\n")] = f"{document.name}, snippet {number}"
    assert place
    found = {
        next(where for end, where in place.items() if line <= end): text
        for line, text in check(code).items()
    }
    assert found == {}, "\n".join(f"{k}: {v}" for k, v in found.items())


def test_the_search_path_holds_the_package_alone(environment: Path, installed: Path) -> None:
    site = environment / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (pth,) = site.glob("*editable*stackelberg*.pth")
    paths = [line for line in pth.read_text().splitlines() if not line.startswith("import ")]
    (folder,) = map(Path, paths)
    assert [path.name for path in folder.iterdir()] == ["stackelberg_fused"]
    real = (folder / "stackelberg_fused").resolve()
    # at run time the files are those of the checkout itself, or of another one that is asked for
    code = """
import importlib; importlib.invalidate_caches()
import stackelberg_fused as sf, stackelberg_fused.triton_kernels as mapped
print(sf.__file__)
print(mapped.__file__)
"""
    python = [str(installed / "bin" / "python"), "-c", code]
    how = {"cwd": site, "capture_output": True, "text": True, "timeout": patience(10)}
    done = subprocess.run(python, check=True, **how)
    assert done.stdout.split() == [
        str(real / "__init__.py"),
        str(real.parent / "triton_kernels" / "__init__.py"),
    ]
    elsewhere = {**clean_environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(python, check=True, env=elsewhere, **how)
    assert done.stdout.split()[0] == str(ROOT / "stackelberg_fused" / "__init__.py")


def test_console_script(installed: Path, tmp_path: Path) -> None:
    programs = {
        "stackelberg": [str(installed / "bin" / "stackelberg")],
        "python -m stackelberg_fused": [
            str(installed / "bin" / "python"),
            "-m",
            "stackelberg_fused",
        ],
    }
    for name, command in programs.items():
        asked = [*command, "doctor", "--help"]
        done = subprocess.run(
            asked, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=patience(10)
        )
        assert done.stdout.startswith(f"usage: {name} doctor ")
