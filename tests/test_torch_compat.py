"""Every private name of torch may be missing: the package imports, steps, and calls the hooks that there are."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import OrderedDict, deque, namedtuple
from typing import Any

import pytest
import torch
from building import clean_environment
from paths import ROOT, SUPPORT
from torch_without import REMOVALS

from stackelberg_fused import torch_compat

MODULE = ROOT / "stackelberg_fused" / "torch_compat.py"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(source: str) -> set[str]:
    """Private names that are imported from torch, or taken from what was imported."""
    found, roots = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias for alias in node.names if alias.name.partition(".")[0] == "torch"]
            roots |= {(alias.asname or "torch") for alias in names}
            found |= {part for a in names for part in a.name.split(".") if is_private(part)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            found |= {part for part in node.module.split(".") if is_private(part)}
            found |= {alias.name for alias in node.names if is_private(alias.name)}
            roots |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            inner = node.value
            while isinstance(inner, ast.Attribute):
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id in roots:
                found.add(node.attr)
    return found


def test_no_other_module_takes_private_names_of_torch() -> None:
    folders = (ROOT / "stackelberg_fused", ROOT / "triton_kernels")
    paths = [path for folder in folders for path in folder.rglob("*.py") if path != MODULE]
    found = {str(path.relative_to(ROOT)): private_names(path.read_text()) for path in paths}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from torch.optim.optimizer import _global_optimizer_pre_hooks",
        "import torch\n\n@torch._disable_dynamo\ndef f(): ...",
        "from torch.autograd import profiler as p\np._is_profiler_enabled",
        "import torch._dynamo",
    ],
)
def test_a_private_name_is_found(line: str) -> None:
    assert private_names(line)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    command = [sys.executable, "-W", "ignore", str(SUPPORT / "torch_without.py")]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", REMOVALS)
def test_a_torch_without_it_is_stepped_all_the_same(name: str, outcomes: dict[str, str]) -> None:
    assert outcomes[name] == ""


Pair = namedtuple("Pair", ["first", "second"])


@pytest.mark.parametrize(
    "tree",
    [
        3,
        None,
        [],
        {},
        [1, (2, {"a": 3, "b": [4]}), ()],
        OrderedDict(z=1, a=(2,)),
        Pair([1], {"x": 2}),
        deque([1, [2]], maxlen=7),
        {1, 2},
        torch.Size([3]),
    ],
    ids=repr,
)
def test_containers_are_taken_apart_as_torch_does(tree: Any) -> None:
    ours, torchs = torch_compat.Pytree, torch.utils._pytree
    leaves, structure = ours.tree_flatten(tree)
    assert leaves == torchs.tree_flatten(tree)[0] == ours.tree_leaves(tree)
    for found in (ours.tree_unflatten(leaves, structure), ours.tree_map(lambda x: x, tree)):
        assert (found, type(found)) == (tree, type(tree))
        assert getattr(found, "maxlen", None) == getattr(tree, "maxlen", None)
    assert ours.tree_map(lambda _: 7, tree) == torchs.tree_map(lambda _: 7, tree)


def test_a_container_that_torch_may_know_is_refused() -> None:
    class Mine(dict):
        pass

    with pytest.raises(TypeError, match="Mine is no plain container"):
        torch_compat.Pytree.tree_leaves([Mine(a=1)])


def test_the_torch_here_has_them_all() -> None:
    """Or every step takes the long way; a version without one has to be looked at."""
    unknown = torch_compat.UNKNOWN
    assert torch_compat.global_pre_hooks is not unknown
    assert torch_compat.global_post_hooks is not unknown
    assert torch_compat.profiler._is_profiler_enabled is False
    assert torch_compat.disable_dynamo is torch._disable_dynamo
    assert torch_compat.pytree is torch.utils._pytree
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    assert torch_compat.scaler_record(scaler, scaler) is not None
    assert float(torch_compat.scale_of(scaler)) == 65536.0
    torch_compat.refuse_unreduced_scaler()
    optimizer = torch.optim.SGD([torch.zeros(1)])
    assert optimizer._optimizer_step_pre_hooks == optimizer._optimizer_step_post_hooks == {}
