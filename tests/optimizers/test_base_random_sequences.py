"""Random lives of an optimizer, each parameter held against an optimizer of its own that only sees its own steps.

On `reference` that is torch's, on `cpu` and the host-run CUDA kernel a one-parameter optimizer of ours; to the bit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import pytest
from cases import (
    OURS,
    STATE,
    TORCHS,
    gradient,
    normal,
)
from checks import assert_same_bits
from host_cuda.backend import HostCudaBackend
from hypothesis import strategies as st
from torch import Tensor, nn

import stackelberg_fused as sf

SIZES = st.sampled_from([0, 1, 3, 17, 64, 4096, 4100])
RATES = st.sampled_from([0.0, 0.01, 0.3])
ADAM = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(["adam", "adamw"]),
        "lr": RATES,
        "betas": st.sampled_from([(0.9, 0.99), (0.0, 0.5)]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
        "cautious": st.booleans(),  # of AdamW, where torch is not the twin
    }
)
SGD = st.fixed_dictionaries(
    {
        "rule": st.just("sgd"),
        "lr": RATES,
        "momentum": st.sampled_from([0.0, 0.9]),
        "dampening": st.sampled_from([0.0, 0.4]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
    }
)
GROUP = st.tuples(
    st.one_of(ADAM, SGD),
    st.sampled_from(["body", "head"]),
    st.lists(st.tuples(SIZES, st.booleans()), min_size=1, max_size=3),  # size, frozen at first
)
EDIT = st.sampled_from(
    [
        {"lr": 0.2},
        {"lr": 0.0},
        {"weight_decay": 0.0},
        {"weight_decay": 0.2},
        {"maximize": True},
        {"cautious": True},
        {"cautious": False},
    ]
)
NUMBER = st.integers(0, 20)
ACTION = st.one_of(
    st.tuples(
        st.just("step"), st.sampled_from([None, None, "body", "head"]), st.integers(1, 2**9 - 1)
    ),
    st.tuples(st.just("edit"), NUMBER, EDIT),
    st.tuples(st.just("add"), GROUP, st.none()),
    st.tuples(st.sampled_from(["reload", "copy", "clear"]), st.none(), st.none()),
    st.tuples(st.sampled_from(["rebind", "forget", "move"]), NUMBER, st.none()),
)


@dataclass
class Life:
    """An optimizer, and beside each of its parameters a twin in an optimizer of its own."""

    backend: Any
    optimizer: Any = None
    twins: list[Any] = field(default_factory=list)
    clock: int = 0

    def groups(self, group: tuple) -> dict[str, Any]:
        settings, role, sizes = group
        if not self.may_be_cautious(settings):
            settings = {k: v for k, v in settings.items() if k != "cautious"}
        params = []
        for size, frozen in sizes:
            self.clock += 1
            value = normal(size, self.clock)
            params.append(nn.Parameter(value.clone(), requires_grad=not frozen))
            cls = (TORCHS if self.backend == "reference" else OURS)[settings["rule"]]
            own = {k: v for k, v in settings.items() if k != "rule"}
            more = (
                {"foreach": False}
                if self.backend == "reference"
                else {"backend": "cpu", "flatten": False}
            )
            self.twins.append(cls([nn.Parameter(value.clone())], **own, **more))
        return {"params": params, "role": role, **settings}

    def may_be_cautious(self, group: dict[str, Any]) -> bool:
        return group["rule"] == "adamw" and self.backend != "reference"

    def rows(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, p) for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, role: str | None, mask: int) -> None:
        self.clock += 1
        for k, ((group, p), twin) in enumerate(zip(self.rows(), self.twins, strict=True)):
            (q,) = twin.param_groups[0]["params"]
            p.grad = q.grad = None
            if mask >> (k % 9) & 1:
                p.requires_grad_(True)
                grad = gradient(p.numel(), 97 * self.clock + k)
                p.grad, q.grad = grad.clone(), grad.clone()
                if role in (None, group["role"]):
                    twin.step()
        if role in (None, *(g["role"] for g in self.optimizer.param_groups)):
            self.optimizer.step(role=role)

    def act(self, what: str, first: Any, second: Any) -> None:
        optimizer = self.optimizer
        rows = self.rows()
        number = first % len(rows) if isinstance(first, int) else 0
        p, twin = rows[number][1], self.twins[number]
        if what == "step":
            self.step(first, second)
        elif what == "edit":
            group = rows[number][0]
            if "cautious" in second and not self.may_be_cautious(group):
                return
            group.update(second)
            for (other, _), own in zip(rows, self.twins, strict=True):
                if other is group:
                    own.param_groups[0].update(second)
        elif what == "add":
            optimizer.add_param_group(self.groups(first))
        elif what == "reload":
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        elif what == "copy":
            self.optimizer = copy.deepcopy(optimizer)
        elif what == "clear":
            optimizer.state.clear()
            for own in self.twins:
                own.state.clear()
        elif what == "rebind":
            p.data = p.data.clone()
        elif what == "forget":
            optimizer.state[p] = {}
            twin.state.clear()
        elif what == "move":  # a parameter of another identity takes over place and state
            new = nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
            group = rows[number][0]
            group["params"][next(i for i, x in enumerate(group["params"]) if x is p)] = new
            if p in optimizer.state:
                optimizer.state[new] = optimizer.state.pop(p)

    def check(self) -> None:
        for k, ((_, p), twin) in enumerate(zip(self.rows(), self.twins, strict=True)):
            (q,) = twin.param_groups[0]["params"]
            assert_same_bits(p, q, f"parameter {k}")
            mine, theirs = self.optimizer.state.get(p, {}), twin.state.get(q, {})
            for name in STATE:
                if theirs.get(name) is not None:
                    assert_same_bits(mine[name], theirs[name], f"parameter {k} {name}")


def _backend(name: str) -> Any:
    if name != "cuda-on-host":
        return name
    if not HostCudaBackend.status().available:
        pytest.skip(HostCudaBackend.status().reason)
    return HostCudaBackend(order="reverse")


@pytest.mark.filterwarnings("ignore:.*learning rate")
@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda-on-host"])
@hypothesis.given(
    st.lists(GROUP, min_size=1, max_size=3), st.lists(ACTION, max_size=12), st.booleans()
)
@hypothesis.settings(max_examples=150)
def test_a_random_life(
    backend: str, groups: list[tuple], actions: list[tuple], flatten: bool
) -> None:
    life = Life(_backend(backend))
    life.optimizer = sf.StackelbergAdamW(
        [life.groups(group) for group in groups], backend=life.backend, flatten=flatten
    )
    life.step(None, 2**9 - 1)
    life.check()
    for action in actions:
        life.act(*action)
        life.check()
    life.step(None, 2**9 - 1)
    life.check()
