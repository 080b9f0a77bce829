"""Flat gradients, and gradients cleared in the launch of the step: where they lie, and what clears them."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import (
    MIXED,
    Options,
    kernel_options,
    normal,
)
from checks import (
    Snapshot,
    all_params,
    assert_same_bits,
    assert_same_optimizers,
)
from flat_buffers import (
    ADAM,
    assert_attached,
    buffers_of,
    fill,
    flat_optimizer,
    flat_sgd,
    params_of,
    zeros,
)
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

SUMS = {"update_every": 2, "update_every_grads": "mean", "ema_decay": 0.9}
HOW: dict[str, dict[str, Any]] = {
    "moving": {},
    "clipped": {"max_grad_norm": 1.0},
    "skipped": {},
    "waiting": {"update_every": 3},
    "summing": SUMS,
}
by_mode = pytest.mark.parametrize("grads", ["flat", "gather"])


@pytest.mark.parametrize("settings", [{}, SUMS], ids=["moving", "summing"])
@pytest.mark.parametrize("options", [*kernel_options(), MIXED], ids=str)
@by_backend
def test_same_bits_as_gathered(backend: str, options: Options, settings: dict[str, Any]) -> None:
    """Also where the buffers are scaled, as those who average over processes do."""
    if is_interpreting() and not options.mixed:
        pytest.skip("left out: the interpreter's time")
    flat = flat_optimizer(options, backend, **settings)
    gathered = flat_optimizer(options, backend, **settings, grads="gather")
    for number, role in enumerate((None, "head", None, "body")):
        for optimizer in (flat, gathered):
            fill(optimizer, number)
            grads = [p.grad for p in params_of(gathered, "body")]
            for grad in flat.flat_grads["body"] if optimizer is flat else grads:
                grad.mul_(0.3)
            optimizer.max_grad_norm = 1.0 if number == 2 else None
            optimizer.step(role=role, zero_grad=optimizer is flat)
            optimizer.zero_grad()
        assert_attached(flat, 0.0)
    assert_same_optimizers(flat, gathered)
    assert flat.launches == gathered.launches == (0 if backend == "reference" else 5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_layouts_sizes_and_dtypes(backend: str) -> None:
    """Also without elements, without dimensions, in another order of memory, with gaps, negated."""
    params = [
        nn.Parameter(value)
        for value in (
            normal(0, 0),
            normal((), 1),
            normal((2, 3, 4, 5), 2).to(memory_format=torch.channels_last),
            normal((70, 70), 3).t(),
            normal((9, 14), 4)[:, ::2],
            torch.tensor(1 + 2j).conj().imag,
            normal(64, 5),
        )
    ]
    if backend == "reference":
        params.append(nn.Parameter(normal(9, 6, torch.float64)))
    ours = flat_sgd(*params, backend=backend)
    assert [len(buffers) for buffers in ours.flat_grads.values()] == [
        len({p.dtype for p in params}),
        0,
    ]
    before, views = [p.detach().clone() for p in params], [p.grad for p in params]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (1.0, 2.0):
            for p in params:
                p.grad.add_(value)
            assert_attached(ours, value)
            ours.step(zero_grad=True)
            assert_attached(ours, 0.0)
    for p, old, view in zip(params, before, views, strict=True):
        assert p.grad is view
        torch.testing.assert_close(p.detach(), old - 3.0)
    assert params[2].grad.stride() == params[2].stride()


def test_autograd_adds_up_in_the_buffer_and_zero_grad_keeps_it() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    twin = copy.deepcopy(model)
    ours = sf.StackelbergAdamW(model.parameters(), grads="flat")
    (buffer,), views = buffers_of(ours), [p.grad for p in model.parameters()]
    for m in (model, twin):
        for number in range(2):
            m(normal((4, 5), number)).square().sum().backward()
    for p, q, view in zip(model.parameters(), twin.parameters(), views, strict=True):
        assert p.grad is view
        assert_same_bits(p.grad, q.grad)
    assert_attached(ours)
    ours.zero_grad(set_to_none=True)
    assert all(p.grad is view for p, view in zip(model.parameters(), views, strict=True))
    assert not buffer.count_nonzero()


def test_who_saved_a_gradient_hears_that_it_was_cleared() -> None:
    """As torch's zero_grad(set_to_none=False)."""
    p = zeros(3)
    ours, factor = flat_sgd(p), torch.ones(3, requires_grad=True)
    for clear in (ours.zero_grad, lambda: ours.step(zero_grad=True)):
        loss = (p.grad * factor).sum()
        clear()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("role", ["body", "head"])
@pytest.mark.parametrize("how", HOW)
@by_mode
@by_backend
def test_a_step_clears_the_gradients_of_its_role(
    backend: str, grads: str, how: str, role: str
) -> None:
    ours = flat_optimizer(ADAM, backend, grads=grads, **HOW[how])
    fill(ours, 0)
    if how == "skipped":
        ours.found_inf = torch.ones((), device=all_params(ours)[0].device)
    before = {p: (p.grad, p.grad.clone(), p.grad._version) for p in all_params(ours)}
    ours.step(role=role, zero_grad=True)
    stepped = {id(p) for p in params_of(ours, role)}
    for p, (grad, value, version) in before.items():
        assert p.grad is (None if id(p) in stepped and grads == "gather" else grad)
        if id(p) not in stepped:
            assert_same_bits(p.grad, value)
        elif grads == "flat":
            assert not grad.count_nonzero()
            assert grad._version > version
    # a host that asks before the launch makes none for a skipped step
    asks = how == "skipped" and backend in ("cpu", "avx2", "baseline")
    launches = 0 if backend == "reference" or asks else 2 if how == "clipped" else 1
    moved = how in ("moving", "clipped")
    assert ours.launches == launches
    assert all(float(ours.state[p].get("step", 0)) == moved for p in params_of(ours, role))


@by_mode
def test_a_step_that_raises_clears_nothing(grads: str) -> None:
    ours = flat_optimizer(grads=grads)
    fill(ours, 0)
    before = Snapshot(ours, [p.grad for p in all_params(ours)])
    ours.param_groups[-1]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr"):
        ours.step(zero_grad=True)
    before.assert_unchanged()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_has_buffers_of_its_own(copied: Callable[[Any], Any]) -> None:
    ours = flat_optimizer()
    again = copied(ours)
    for number in (1, 2):
        for optimizer in (ours, again):
            fill(optimizer, number)
            optimizer.step(zero_grad=True)
            assert_attached(optimizer, 0.0)
    assert_same_optimizers(again, ours)
    assert not {b.data_ptr() for b in buffers_of(ours)} & {b.data_ptr() for b in buffers_of(again)}


def test_groups_that_are_added_and_state_that_is_loaded() -> None:
    ours = flat_optimizer()
    fill(ours, 0)
    values = [p.grad.clone() for p in all_params(ours)]
    ours.add_param_group({"params": [zeros(70)], "role": "head"})
    for p, value in zip(all_params(ours), [*values, torch.zeros(70)], strict=True):
        assert_same_bits(p.grad, value)
    buffers = buffers_of(ours)
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert all(a is b for a, b in zip(buffers, buffers_of(ours), strict=True))
    assert_attached(ours)


@pytest.mark.parametrize("overflow", [False, True])
def test_a_scaler_passes_it_on(overflow: bool) -> None:
    p = nn.Parameter(torch.ones(3))
    ours, scaler = flat_sgd(p, fused=True), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(p.sum() * (torch.inf if overflow else 1.0)).backward()
    scaler.step(ours, zero_grad=True)
    assert p.tolist() == [float(overflow)] * 3
    assert_attached(ours, 0.0)


def test_a_closure() -> None:
    p = nn.Parameter(torch.ones(3))
    ours = flat_sgd(p)
    for before in (3.0, 0.0):
        assert ours.step(lambda: [p.sum().item(), p.sum().backward()][0], zero_grad=True) == before
        assert_attached(ours, 0.0)


def test_what_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    for grads in ("Flat", None, True):
        with pytest.raises(ValueError, match="unknown grads"):
            sf.StackelbergAdamW([p], grads=grads)
    with pytest.raises(ValueError, match="differentiable"):
        sf.StackelbergAdamW([p], grads="flat", differentiable=True)
    assert p.grad is None
    with pytest.raises(RuntimeError, match=r"flat_grads needs an optimizer with grads=.flat."):
        _ = sf.StackelbergAdamW([p]).flat_grads


def test_a_shard_of_one_rank(tmp_path: Any) -> None:
    """Of several ranks: tests/engine/test_flat_gradients_sharded.py."""
    tensors = pytest.importorskip("torch.distributed.tensor")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        p = nn.Parameter(tensors.distribute_tensor(torch.ones(3), mesh, [tensors.Shard(0)]))
        ours = flat_sgd(p)
        view = p.grad
        (2 * p.to_local()).sum().backward()
        assert p.grad is view
        assert ours.flat_grads["body"][0][:3].tolist() == [2.0] * 3
        ours.step(zero_grad=True)
        assert p.to_local().tolist() == [-1.0] * 3
        assert not ours.flat_grads["body"][0].any()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="this torch has no grad_dtype")
@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, torch.float16, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@by_backend
def test_gradients_of_another_dtype_have_buffers_of_it(
    backend: str, dtype: torch.dtype, grad_dtype: torch.dtype | None
) -> None:
    instance, device = chosen(backend)
    params = [nn.Parameter(normal(n, n).to(device, dtype)) for n in (3, 70, 0)]
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    for p in (*params[1:], *twins[1:]):
        p.grad_dtype = grad_dtype
    ours = sf.StackelbergAdamW(params, lr=0.1, backend=instance, grads="flat")
    gathered = sf.StackelbergAdamW(twins, lr=0.1, backend=instance)
    expected = {dtype, grad_dtype or dtype}
    assert {buffer.dtype for buffer in ours.flat_grads["body"]} == expected
    for _ in range(3):
        for some in (params, twins):
            sum((p * p).sum() for p in some).backward()
        for p in params[1:]:
            assert p.grad.dtype == (grad_dtype or dtype)
        for optimizer in (ours, gathered):
            optimizer.step(zero_grad=True)
        for p, q in zip(params, twins, strict=True):
            assert_same_bits(p, q)
            assert not p.grad.any()
