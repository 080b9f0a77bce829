"""Flat gradients, and gradients cleared in the launch of the step: where they lie, what clears them, what notices."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import MIXED, Options, gradient, groups_of, kernel_options, normal, sizes_for
from checks import Snapshot, all_params, assert_same_bits, assert_same_optimizers
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.arena import padded
from stackelberg_fused.backends.triton import is_interpreting

ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
SUMS = {"update_every": 2, "update_every_grads": "mean", "ema_decay": 0.9}
HOW: dict[str, dict[str, Any]] = {
    "moving": {},
    "clipped": {"max_grad_norm": 1.0},
    "skipped": {},
    "waiting": {"update_every": 3},
    "summing": SUMS,
}
by_mode = pytest.mark.parametrize("grads", ["flat", "gather"])


def _optimizer(options: Options = ADAM, backend: str = "cpu", **more: Any) -> Any:
    instance, device = chosen(backend)
    groups = groups_of(sizes_for(7), device, mixed=options.mixed)
    return options.ours(groups, **{"backend": instance, "grads": "flat", **more})


def _sgd(*params: nn.Parameter, backend: str = "cpu", **more: Any) -> Any:
    return sf.StackelbergSGD(params, lr=1.0, backend=chosen(backend)[0], grads="flat", **more)


def _zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def _fill(optimizer: Any, number: int) -> None:
    """New values where gradients are, as autograd leaves them."""
    for k, p in enumerate(all_params(optimizer)):
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad.copy_(gradient(tuple(p.shape), 7919 * number + k, p.dtype))


def _of_role(optimizer: Any, role: str) -> list[nn.Parameter]:
    return [p for g in optimizer.param_groups if g["role"] == role for p in g["params"]]


def _buffers(optimizer: Any) -> list[Tensor]:
    return [buffer for buffers in optimizer.flat_grads.values() for buffer in buffers]


def _assert_attached(optimizer: Any, value: float | None = None) -> None:
    """Gradients are in the buffers, in the order of the groups, and nothing but zeros is between them."""
    for role, buffers in optimizer.flat_grads.items():
        for buffer in buffers:
            assert buffer.is_contiguous()
            assert buffer.dim() == 1
            at, rest, size = 0, buffer.clone(), buffer.element_size()
            for p in _of_role(optimizer, role):
                if p.requires_grad and p.numel() and p.dtype is buffer.dtype:
                    off = p.grad.data_ptr() - buffer.data_ptr() - at * size
                    assert off == 0
                    assert value is None or bool((p.grad == value).all())
                    rest[at : at + p.numel()] = 0
                    at += padded(p.numel())
            assert (at, int(rest.count_nonzero())) == (buffer.numel(), 0)


@pytest.mark.parametrize("settings", [{}, SUMS], ids=["moving", "summing"])
@pytest.mark.parametrize("options", [*kernel_options(), MIXED], ids=str)
@by_backend
def test_same_bits_as_gathered(backend: str, options: Options, settings: dict[str, Any]) -> None:
    """Also where the buffers are scaled, as those who average over processes do."""
    if is_interpreting() and not options.mixed:
        pytest.skip("left out: the interpreter's time")
    flat = _optimizer(options, backend, **settings)
    gathered = _optimizer(options, backend, **settings, grads="gather")
    for number, role in enumerate((None, "head", None, "body")):
        for optimizer in (flat, gathered):
            _fill(optimizer, number)
            grads = [p.grad for p in _of_role(gathered, "body")]
            for grad in flat.flat_grads["body"] if optimizer is flat else grads:
                grad.mul_(0.3)
            optimizer.max_grad_norm = 1.0 if number == 2 else None
            optimizer.step(role=role, zero_grad=optimizer is flat)
            optimizer.zero_grad()
        _assert_attached(flat, 0.0)
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
    ours = _sgd(*params, backend=backend)
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
            _assert_attached(ours, value)
            ours.step(zero_grad=True)
            _assert_attached(ours, 0.0)
    for p, old, view in zip(params, before, views, strict=True):
        assert p.grad is view
        torch.testing.assert_close(p.detach(), old - 3.0)
    assert params[2].grad.stride() == params[2].stride()


def test_autograd_adds_up_in_the_buffer_and_zero_grad_keeps_it() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    twin = copy.deepcopy(model)
    ours = sf.StackelbergAdamW(model.parameters(), grads="flat")
    (buffer,), views = _buffers(ours), [p.grad for p in model.parameters()]
    for m in (model, twin):
        for number in range(2):
            m(normal((4, 5), number)).square().sum().backward()
    for p, q, view in zip(model.parameters(), twin.parameters(), views, strict=True):
        assert p.grad is view
        assert_same_bits(p.grad, q.grad)
    _assert_attached(ours)
    ours.zero_grad(set_to_none=True)
    assert all(p.grad is view for p, view in zip(model.parameters(), views, strict=True))
    assert not buffer.count_nonzero()


def test_who_saved_a_gradient_hears_that_it_was_cleared() -> None:
    """As torch's zero_grad(set_to_none=False)."""
    p = _zeros(3)
    ours, factor = _sgd(p), torch.ones(3, requires_grad=True)
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
    ours = _optimizer(ADAM, backend, grads=grads, **HOW[how])
    _fill(ours, 0)
    if how == "skipped":
        ours.found_inf = torch.ones((), device=all_params(ours)[0].device)
    before = {p: (p.grad, p.grad.clone(), p.grad._version) for p in all_params(ours)}
    ours.step(role=role, zero_grad=True)
    stepped = {id(p) for p in _of_role(ours, role)}
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
    assert all(float(ours.state[p].get("step", 0)) == moved for p in _of_role(ours, role))


@by_mode
def test_a_step_that_raises_clears_nothing(grads: str) -> None:
    ours = _optimizer(grads=grads)
    _fill(ours, 0)
    before = Snapshot(ours, [p.grad for p in all_params(ours)])
    ours.param_groups[-1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        ours.step(zero_grad=True)
    before.assert_unchanged()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_has_buffers_of_its_own(copied: Callable[[Any], Any]) -> None:
    ours = _optimizer()
    again = copied(ours)
    for number in (1, 2):
        for optimizer in (ours, again):
            _fill(optimizer, number)
            optimizer.step(zero_grad=True)
            _assert_attached(optimizer, 0.0)
    assert_same_optimizers(again, ours)
    assert not {b.data_ptr() for b in _buffers(ours)} & {b.data_ptr() for b in _buffers(again)}


def test_groups_that_are_added_and_state_that_is_loaded() -> None:
    ours = _optimizer()
    _fill(ours, 0)
    values = [p.grad.clone() for p in all_params(ours)]
    ours.add_param_group({"params": [_zeros(70)], "role": "head"})
    for p, value in zip(all_params(ours), [*values, torch.zeros(70)], strict=True):
        assert_same_bits(p.grad, value)
    buffers = _buffers(ours)
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert all(a is b for a, b in zip(buffers, _buffers(ours), strict=True))
    _assert_attached(ours)


@pytest.mark.parametrize("flatten", [True, False])
def test_frozen_parameters(flatten: bool) -> None:
    """They get no place; once they are trained they do, or whoever reduces the buffers would miss them."""
    trained, frozen = _zeros(5), _zeros(70).requires_grad_(False)
    ours = _sgd(trained, frozen, flatten=flatten)
    assert frozen.grad is None
    _assert_attached(ours)
    ours.step()
    frozen.requires_grad_(True)
    (trained.sum() + frozen.sum()).backward()
    _assert_attached(ours, 1.0)
    ours.step(zero_grad=True)
    _assert_attached(ours, 0.0)
    assert (trained.tolist(), frozen.tolist()) == ([-1.0] * 5, [-1.0] * 70)


@pytest.mark.parametrize("how", ["step", "zero_grad"])
def test_a_parameter_that_is_frozen_stays_where_it_is(how: str) -> None:
    trained, frozen = _zeros(5), _zeros(70)
    ours = _sgd(trained, frozen, momentum=0.9)
    (trained.sum() + frozen.sum()).backward()
    ours.step(zero_grad=True)
    frozen.requires_grad_(False)
    for _ in range(2):
        if how == "zero_grad":
            ours.zero_grad()
        trained.sum().backward()
        ours.step(zero_grad=how == "step")
    assert frozen.tolist() == [-1.0] * 70
    assert frozen.grad is None
    assert ours.flat_grads["body"][0].numel() == padded(5)


def test_gradients_without_a_place_that_share_memory() -> None:
    params = [_zeros(5), *(nn.Parameter(torch.zeros(5), requires_grad=False) for _ in range(2))]
    ours = _sgd(*params)
    shared = torch.ones(5)
    for p in params[1:]:
        p.grad = shared
    ours.step(zero_grad=True)
    assert [p.tolist() for p in params] == [[0.0] * 5, [-1.0] * 5, [-1.0] * 5]
    assert [p.grad is None for p in params] == [False, True, True]


def test_who_asks_for_the_buffers_gets_all_gradients() -> None:
    """Also those that a model's own zero_grad led elsewhere: whoever reduces the buffers asks before."""
    model = nn.Linear(3, 2)
    ours = _sgd(*model.parameters())
    model.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    found = [p.grad.clone() for p in model.parameters()]
    (buffer,) = ours.flat_grads["body"]
    assert float(buffer.sum()) == float(sum(grad.sum() for grad in found)) != 0
    _assert_attached(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.step()


ODD: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: gradient((4, 6), 1).clone(),
    "transposed": lambda: gradient((6, 4), 1).clone().t(),
    "gaps": lambda: gradient((4, 12), 1).clone()[:, ::2],
    "expanded": lambda: gradient((4, 1), 1).clone().expand(4, 6),
    "negated": lambda: torch._neg_view(gradient((6, 4), 1).clone()).t(),
}


@pytest.mark.parametrize("skipped", [False, True])
@pytest.mark.parametrize("kind", ODD)
@by_backend
def test_a_gradient_elsewhere_is_cleared_itself(backend: str, kind: str, skipped: bool) -> None:
    """Not only the copy that a kernel reads; then the view is back."""
    device = chosen(backend)[1]
    p = nn.Parameter(torch.zeros(4, 6, device=device))
    ours = _sgd(p, backend=backend)
    ours.step()  # by zeros: now it is known where gradients were
    view, foreign = p.grad, ODD[kind]().to(device)
    p.grad, value = foreign, foreign.clone()
    if skipped:
        ours.found_inf = torch.ones((), device=device)
    with pytest.warns(UserWarning, match="flat buffer"):
        ours.step(zero_grad=True)
    torch.testing.assert_close(p.detach(), -value * (not skipped))
    assert p.grad is view
    assert [int(t.count_nonzero()) for t in (view, foreign)] == [0, 0]


def test_gradients_that_share_memory_all_count() -> None:
    params = [_zeros(5000), _zeros(5000)]
    ours = _sgd(*params)
    params[0].grad = params[1].grad = torch.ones(5000)
    with pytest.warns(UserWarning, match="flat buffer"):
        ours.step(zero_grad=True)
    assert all(bool((p == -1.0).all()) for p in params)


@by_backend
def test_a_model_that_clears_gradients_itself(backend: str) -> None:
    flat, gathered = (_optimizer(ADAM, backend, grads=grads) for grads in ("flat", "gather"))
    caught = []
    for number in range(3):
        for optimizer in (flat, gathered):
            for p in all_params(optimizer):
                p.grad = None
            _fill(optimizer, number)
            with warnings.catch_warnings(record=True) as found:
                optimizer.step()
            caught += found
    (warning,) = caught
    label = next(i for i, p in enumerate(flat.param_groups[0]["params"]) if p.numel())
    assert f"parameter {label} of param group 0 (body)" in str(warning.message)
    assert warning.filename == __file__
    assert_same_optimizers(flat, gathered)
    flat.zero_grad()
    _assert_attached(flat, 0.0)


MOVED = [torch.zeros(6, 4).t(), torch.zeros(70), torch.zeros(4, 6).double()]


@pytest.mark.parametrize("data", MOVED, ids=["strides", "shape", "dtype"])
def test_parameters_that_are_moved_before_the_first_step(data: Tensor) -> None:
    p = _zeros(4, 6)
    ours = _sgd(p, backend="reference")
    p.grad = None
    p.data = data.clone()
    p.sum().backward()
    ours.step()
    assert bool((p == -1.0).all())
    assert p.grad.stride() == p.stride()
    _assert_attached(ours, 1.0)


def test_parameters_that_are_put_into_a_group_by_hand() -> None:
    first, second = _zeros(5), _zeros(70)
    ours = _sgd(first)
    first.data = torch.zeros(5)  # like before: nothing changes
    ours.param_groups[0]["params"].append(second)
    (first.sum() + second.sum()).backward()
    _assert_attached(ours, 1.0)
    ours.param_groups[0]["params"].pop()
    ours.zero_grad()
    _assert_attached(ours, 0.0)


@pytest.mark.parametrize("overflow", [False, True])
def test_a_scaler_passes_it_on(overflow: bool) -> None:
    p = nn.Parameter(torch.ones(3))
    ours, scaler = _sgd(p), torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(p.sum() * (torch.inf if overflow else 1.0)).backward()
    scaler.step(ours, zero_grad=True)
    assert p.tolist() == [float(overflow)] * 3
    _assert_attached(ours, 0.0)


def test_a_closure() -> None:
    p = nn.Parameter(torch.ones(3))
    ours = _sgd(p)
    for before in (3.0, 0.0):
        assert ours.step(lambda: [p.sum().item(), p.sum().backward()][0], zero_grad=True) == before
        _assert_attached(ours, 0.0)


def test_what_is_refused() -> None:
    p = nn.Parameter(torch.ones(3))
    for grads in ("Flat", None, True):
        with pytest.raises(ValueError, match="unknown grads"):
            sf.StackelbergAdamW([p], grads=grads)
    with pytest.raises(ValueError, match="differentiable"):
        sf.StackelbergAdamW([p], grads="flat", differentiable=True)
    assert p.grad is None
    assert sf.StackelbergAdamW([p]).flat_grads == {"body": [], "head": []}


def test_shards_are_refused(tmp_path: Any) -> None:
    tensors = pytest.importorskip("torch.distributed.tensor")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        p = nn.Parameter(tensors.distribute_tensor(torch.ones(3), mesh, [tensors.Shard(0)]))
        with pytest.raises(ValueError, match=r"parameter 0 of param group 0 .*DTensor"):
            _sgd(p)
    finally:
        torch.distributed.destroy_process_group()
