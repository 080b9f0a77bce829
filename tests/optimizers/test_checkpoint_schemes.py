"""Checkpoints of every scheme: saved, loaded, resumed exactly, and converted into another; and what they take."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from backends import by_host_backend, chosen
from cases import (
    OURS,
    TORCHS,
    gradient,
    normal,
)
from checks import assert_same_bits
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.backends.reference_storage import read_moment, read_weight
from stackelberg_fused.groups.schemes import has_moment, scheme_of
from stackelberg_fused.memory.arena import in_memory_order
from stackelberg_fused.numerics.block_rows import block_row_of

SCHEMES = [
    (torch.float32, None, "bfloat16"),
    (torch.float32, None, "8bit"),
    (torch.bfloat16, None, "float32"),
    (torch.bfloat16, "stochastic", "8bit"),
    (torch.bfloat16, "kahan", "bfloat16"),
    (torch.bfloat16, "split16", "float32"),
    (torch.bfloat16, "split8", "8bit"),
    (torch.bfloat16, "fp32", "8bit"),
    (torch.float16, "kahan", "bfloat16"),
    (torch.float16, "fp32", "float32"),
]
by_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


def model_of(dtype: torch.dtype) -> nn.ParameterList:
    """A matrix, a vector, and weights of a convolution in another order of memory."""
    sizes = [(37, 5), (70,), (8, 4, 3, 3)]
    params = [nn.Parameter(normal(size, i).to(dtype)) for i, size in enumerate(sizes)]
    params[2].data = params[2].data.to(memory_format=torch.channels_last)
    return nn.ParameterList(params)


def optimizer_of(model: Any, scheme: Any, backend: str, rule: str = "adamw", **how: Any) -> Any:
    _, master, state = scheme
    if rule == "sgd":
        how["momentum"] = 0.9
    how = {"lr": 0.01, "float32_state": "none", **how}
    return OURS[rule](
        model.parameters(), master=master, state_dtype=state, backend=chosen(backend)[0], **how
    )


def train(model: Any, optimizer: Any, steps: range) -> None:
    for step in steps:
        for p in model.parameters():
            p.grad = gradient(tuple(p.shape), step).to(p.dtype)
        optimizer.step()


def assert_same(a: tuple[Any, Any], b: tuple[Any, Any]) -> None:
    for p, q in zip(a[0].parameters(), b[0].parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())
        assert a[1].state[p].keys() == b[1].state[q].keys()
        for name, value in a[1].state[p].items():
            assert_same_bits(value, b[1].state[q][name], name)


def opened(optimizer: Any, p: Tensor) -> dict[str, Tensor]:
    """Weight and moments as float32, in the order of memory."""
    scheme = scheme_of(optimizer.param_groups[0], p)
    entry = optimizer.state[p]
    flat = {
        n: t.reshape(-1) if n.endswith("_scale") else in_memory_order(t)
        for n, t in entry.items()
        if t.dim()
    }
    names = [n for n in ("exp_avg", "exp_avg_sq", "momentum_buffer") if has_moment(entry, n)]
    dense = next(t for n, t in entry.items() if t.shape == p.shape)
    found = {name: read_moment(scheme, name, flat, block_row_of(dense)) for name in names}
    return found | {"weight": read_weight(scheme, in_memory_order(p.detach()), flat)}


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
@pytest.mark.parametrize("how", ["file", "deepcopy", "pickle"])
@by_scheme
@by_host_backend
def test_a_run_goes_on_exactly(backend: str, scheme: Any, how: str, rule: str) -> None:
    model = model_of(scheme[0])
    ours = optimizer_of(model, scheme, backend, rule, seed=3)
    train(model, ours, range(3))
    if how == "file":
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": ours.state_dict()}, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        again = model_of(scheme[0])
        again.load_state_dict(loaded["model"])
        resumed = optimizer_of(again, scheme, backend, rule)  # the seed is in the checkpoint
        resumed.load_state_dict(loaded["optimizer"])
    elif how == "deepcopy":
        again, resumed = copy.deepcopy((model, ours))
    else:
        again, resumed = pickle.loads(pickle.dumps((model, ours)))
    train(model, ours, range(3, 6))
    train(again, resumed, range(3, 6))
    assert_same((model, ours), (again, resumed))


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
@by_scheme
@by_host_backend
def test_float32_state_becomes_that_of_a_scheme_and_back(
    backend: str, scheme: Any, rule: str
) -> None:
    wide = (scheme[0], "fp32" if scheme[0] is not torch.float32 else None, "float32")
    model = model_of(scheme[0])
    exact = optimizer_of(model, wide, backend, rule)
    train(model, exact, range(3))
    there = copy.deepcopy(model)
    ours = optimizer_of(there, scheme, backend, rule)
    ours.load_state_dict(exact.state_dict())
    back = copy.deepcopy(model)
    again = optimizer_of(back, wide, backend, rule)
    again.load_state_dict(ours.state_dict())
    # an eighth of a binade, rounded to nearest, or the rounding of bfloat16
    rounding = {"8bit": 2**-4, "bfloat16": 2**-8, "float32": 0.0}[scheme[2]]
    triples = zip(model.parameters(), there.parameters(), back.parameters(), strict=True)
    for p, q, r in triples:
        expected, found = opened(exact, p), opened(ours, q)
        assert ours.state[q]["step"] == again.state[r]["step"] == 3
        for name in expected.keys() - {"weight"}:
            largest = expected[name].abs().max()
            error = (found[name] - expected[name]).abs()
            smallest = 2**-17 * largest if scheme[2] == "8bit" else 0.0
            assert (error <= rounding * expected[name].abs() + smallest).all(), name
            assert_same_bits(in_memory_order(again.state[r][name]), found[name], name)
        precision = {"split16": 0.0, "fp32": 0.0, "kahan": 2**-16, "split8": 2**-16}.get(
            scheme[1], 2**-8
        )
        if scheme[0] is torch.float16:
            precision = precision and 2**-11
        if scheme[0] is not torch.float32:
            error = (found["weight"] - expected["weight"]).abs()
            # a weight just between two of bfloat16 has no remainder that reaches it
            assert (error <= (precision + 2**-23) * expected["weight"].abs() + 1e-7).all()
    train(there, ours, range(3, 5))


@by_host_backend
def test_an_edit_between_steps_converts(backend: str) -> None:
    model = model_of(torch.bfloat16)
    ours = optimizer_of(model, (torch.bfloat16, "split16", "float32"), backend)
    train(model, ours, range(3))
    before = [opened(ours, p) for p in model.parameters()]
    ours.param_groups[0].update(state_dtype="8bit", master="fp32", lr=0.0)
    train(model, ours, range(3, 4))
    for p, old in zip(model.parameters(), before, strict=True):
        assert ours.state[p]["exp_avg_code"].dtype is torch.uint8
        assert "exp_avg" not in ours.state[p]
        assert "remainder" not in ours.state[p]
        assert_same_bits(in_memory_order(ours.state[p]["master"]), old["weight"])
        assert ours.state[p]["step"] == 4
    ours.param_groups[0]["state_dtype"] = "4bit"
    with pytest.raises(ValueError, match="unknown state_dtype '4bit'"):
        train(model, ours, range(1))


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
@by_host_backend
def test_torchs_own_checkpoint_in_bfloat16(backend: str, rule: str) -> None:
    model = model_of(torch.bfloat16)
    settings = {"momentum": 0.9} if rule == "sgd" else {}
    theirs = TORCHS[rule](model.parameters(), lr=0.01, **settings)
    train(model, theirs, range(3))
    ours = optimizer_of(model, (torch.bfloat16, None, "float32"), backend, rule)
    ours.load_state_dict(theirs.state_dict())
    for p in model.parameters():
        for name, value in theirs.state[p].items():
            if name != "step":
                assert_same_bits(ours.state[p][name], value.float())
    train(model, ours, range(3, 5))


def test_codes_without_scales_are_refused() -> None:
    model = model_of(torch.bfloat16)
    ours = optimizer_of(model, (torch.bfloat16, None, "8bit"), "reference")
    train(model, ours, range(2))
    packed = ours.state_dict()
    del packed["state"][0]["exp_avg_scale"]
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=r"parameter 0 .*exp_avg_code without its scales"):
        ours.load_state_dict(packed)
    for key, entry in before["state"].items():
        for name, value in entry.items():
            assert_same_bits(ours.state_dict()["state"][key][name], value)


def storage_bytes(tensors: Any) -> int:
    """Of the memory that is held, arenas and all."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


BYTES = {
    (torch.bfloat16, "split8", "8bit"): 5.1,
    (torch.bfloat16, "stochastic", "8bit"): 4.1,
    (torch.bfloat16, "split16", "float32"): 12.0,
    (torch.bfloat16, "kahan", "bfloat16"): 8.0,
    (torch.float32, None, "8bit"): 6.1,
}


@pytest.mark.parametrize("scheme", BYTES, ids=str)
@by_host_backend
def test_bytes_per_parameter(backend: str, scheme: Any) -> None:
    """Allocated, not asked for: parameters and state without gradients, of a model with norms and biases."""
    parts = (nn.Linear(256, 1024), nn.LayerNorm(1024), nn.Linear(1024, 512), nn.Linear(512, 64))
    model = nn.Sequential(*parts).to(scheme[0])
    ours = optimizer_of(model, scheme, backend)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    ours.step()
    tensors = [*model.parameters()]
    for entry in ours.state.values():
        tensors += [t for name, t in entry.items() if name != "step"]
    count = sum(p.numel() for p in model.parameters())
    assert storage_bytes(tensors) / count <= BYTES[scheme] * 1.002


def test_torchs_own_optimizer_does_not_take_codes_for_numbers() -> None:
    model = model_of(torch.bfloat16)
    ours = optimizer_of(model, (torch.bfloat16, None, "8bit"), "reference")
    train(model, ours, range(2))
    theirs = torch.optim.AdamW(model.parameters())
    theirs.load_state_dict(ours.state_dict())
    with pytest.raises(KeyError, match="exp_avg"):
        train(model, theirs, range(1))


def test_torchs_own_sgd_begins_anew_beside_codes_and_converted_ones_go_on() -> None:
    model = model_of(torch.bfloat16)
    ours = optimizer_of(model, (torch.bfloat16, None, "8bit"), "reference", "sgd")
    train(model, ours, range(2))
    theirs = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    theirs.load_state_dict(ours.state_dict())
    assert all("momentum_buffer" not in theirs.state[p] for p in model.parameters())
    wide = optimizer_of(model, (torch.bfloat16, None, "float32"), "reference", "sgd")
    wide.load_state_dict(ours.state_dict())
    theirs.load_state_dict(wide.state_dict())
    for p in model.parameters():
        found = in_memory_order(theirs.state[p]["momentum_buffer"])
        assert_same_bits(found, opened(ours, p)["momentum_buffer"].to(p.dtype))


BAD_KINDS = {
    "exp_avg_scale": (torch.int64, "exp_avg_scale of dtype torch.int64"),
    "exp_avg_sq_scale": (torch.float32, "exp_avg_sq_scale of dtype torch.float32"),
    "exp_avg_code": (torch.int32, "exp_avg_code of dtype torch.int32"),
    "remainder": (torch.int32, "remainder of dtype torch.int32"),
}


@pytest.mark.parametrize("name", BAD_KINDS)
def test_numbers_of_another_kind_are_refused(name: str) -> None:
    model = model_of(torch.bfloat16)
    ours = optimizer_of(model, (torch.bfloat16, "split8", "8bit"), "reference")
    train(model, ours, range(2))
    packed = copy.deepcopy(ours.state_dict())
    dtype, message = BAD_KINDS[name]
    packed["state"][0][name] = packed["state"][0][name].to(dtype)
    with pytest.raises(ValueError, match=f"parameter 0 .*{message}"):
        ours.load_state_dict(packed)
    packed = copy.deepcopy(ours.state_dict())
    scales = packed["state"][0]["exp_avg_scale"]
    packed["state"][0]["exp_avg_scale"] = torch.full_like(scales, 255)
    with pytest.raises(ValueError, match=r"parameter 0 .*exp_avg_scale above 253"):
        ours.load_state_dict(packed)


def test_scales_are_not_shards() -> None:
    """A state dict names what it holds, for those who read it."""
    model = nn.Linear(64, 32, bias=False).bfloat16()
    ours = sf.StackelbergAdamW(model.parameters(), master="split8", state_dtype="8bit")
    model(torch.ones(1, 64, dtype=torch.bfloat16)).sum().backward()
    ours.step()
    found = {n: (t.dtype, tuple(t.shape)) for n, t in ours.state[model.weight].items()}
    assert found == {
        "step": (torch.float32, ()),
        "exp_avg_code": (torch.uint8, (32, 64)),
        "exp_avg_scale": (torch.uint8, (32, 2)),
        "exp_avg_sq_code": (torch.uint8, (32, 64)),
        "exp_avg_sq_scale": (torch.uint8, (32, 2)),
        "remainder": (torch.int8, (32, 64)),
    }


IN_MEMORY = {
    "rows": normal((40, 70), 1),
    "columns": normal((70, 40), 1).t(),
    "channels last": normal((1, 5, 3, 3), 1).to(memory_format=torch.channels_last),
    "contiguous": normal((1, 5, 3, 3), 1),
}


@pytest.mark.parametrize(
    "before, after",
    [
        ("rows", "columns"),
        ("columns", "rows"),
        ("channels last", "contiguous"),
        ("contiguous", "channels last"),
    ],
)
def test_codes_of_another_order_of_memory_are_converted(before: str, after: str) -> None:
    """Their scales have another shape then, as blocks are of rows in memory."""
    scheme = torch.float32, None, "8bit"
    saved, loaded = (
        nn.ParameterList([nn.Parameter(IN_MEMORY[name].clone())]) for name in (before, after)
    )
    theirs, ours = (optimizer_of(model, scheme, "cpu") for model in (saved, loaded))
    saved[0].grad = normal(tuple(saved[0].shape), 5)
    theirs.step()
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    expected, found = opened(theirs, saved[0])["exp_avg"], opened(ours, loaded[0])["exp_avg"]
    # each in its own order of memory, and rounded by the scales of other blocks
    logical = torch.empty_like(saved[0]).detach()
    in_memory_order(logical).copy_(expected)
    reordered = torch.empty_like(loaded[0]).detach().copy_(logical)
    assert (found - in_memory_order(reordered)).abs().max() <= 2.0**-3 * expected.abs().max()
    assert_same_bits(ours.state[loaded[0]]["step"], theirs.state[saved[0]]["step"], "step")
    loaded[0].grad = normal(tuple(loaded[0].shape), 6)
    ours.step()
