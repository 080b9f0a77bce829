"""Gradients as Python objects: met once, followed by identity and address, never kept alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from functools import partial

import torch
from cases import Options, normal
from checks import assert_same_optimizers, compare_gathered
from hypothesis import given
from hypothesis import strategies as st
from tolerances import SEVERAL_STEPS
from torch import Tensor, nn

import stackelberg_fused as sf

ADAM = Options("adamw", {"amsgrad": True, "lr": 0.1})
_compare = partial(compare_gathered, ADAM)


def test_old_gradients_are_not_kept_alive() -> None:
    param = nn.Parameter(normal((8, 8), 1))
    optimizer = ADAM.ours([param], backend="cpu")
    for make in (lambda: normal((8, 8), 2), lambda: normal((8, 8), 3).t()):
        param.grad = grad = make()
        alive = weakref.ref(grad.untyped_storage()), weakref.ref(grad)
        del grad
        optimizer.step()
        optimizer.zero_grad()
        gc.collect()
        assert [ref() for ref in alive] == [None, None]


def test_rebound_grad_data() -> None:
    param, twin = (nn.Parameter(normal((6, 5), 1)) for _ in range(2))
    ours, plain = ADAM.ours([param]), ADAM.torchs([twin])
    param.grad = torch.zeros(6, 5)
    for step in range(4):
        new = normal((5, 6), step).t() if step % 2 else normal((6, 5), step)
        param.grad.data = new
        twin.grad = new.clone()
        ours.step()
        plain.step()
        torch.testing.assert_close(param, twin, **SEVERAL_STEPS)


@given(
    st.lists(
        st.lists(
            st.sampled_from(["none", "same", "new", "moved", "turned", "odd"]),
            min_size=3,
            max_size=3,
        ),
        max_size=8,
    )
)
def test_any_history_of_gradient_objects(history: list[list[str]]) -> None:
    params = [nn.Parameter(normal((4, 4), i)) for i in range(3)]

    def steps() -> Iterator[list[Tensor | None]]:
        for number, kinds in enumerate(history):
            grads: list[Tensor | None] = []
            for i, kind in enumerate(kinds):
                fresh, old = normal((4, 4), 100 * number + i), params[i].grad
                if kind == "same" and old is not None:
                    grads.append(old.copy_(fresh))
                elif kind in ("moved", "turned") and old is not None:
                    old.data = fresh if kind == "moved" else fresh.t()
                    grads.append(old)
                else:
                    grads.append({"none": None, "odd": fresh.t()}.get(kind, fresh))
            yield grads

    _compare(params, steps())


def test_gradients_that_require_grad() -> None:
    params = [[nn.Parameter(normal((4, 4), 1))] for _ in range(2)]
    optimizers = [ADAM.ours(params[0]), ADAM.ours(params[1])]
    for optimizer, create_graph in zip(optimizers, (True, False), strict=True):
        (p,) = optimizer.param_groups[0]["params"]
        for _ in range(3):
            ((p.t() @ p) ** 2).sum().backward(create_graph=create_graph)
            assert p.grad.requires_grad is create_graph
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert_same_optimizers(*optimizers)


def test_autograd_hands_its_tensor_over() -> None:
    """The point of gathering: the kernel reads the tensor that backward made, no copy, no accumulation."""
    layer = nn.Linear(64, 64)
    optimizer = sf.StackelbergAdamW(layer.parameters(), backend="cpu")
    for _ in range(2):
        layer(normal((4, 64), 1)).sum().backward()
        address = layer.weight.grad.data_ptr()
        optimizer.step()
        assert optimizer._engine.units[0].table.records["grad"][0] == address
        optimizer.zero_grad()
        assert layer.weight.grad is None
