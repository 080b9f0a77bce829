"""Weights and state of fewer bits: the same on every backend.

Interpreted Triton, in another process as in test_parity.py, takes every scheme over fewer elements and steps, and each
with one of the rules of `STEPS`, or one of `EXTRAS`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends import AS_CPU, GPU, by_native_backend, chosen, rounds_fma_twice
from cases import Options
from checks import assert_same_bits
from low_precision_values import tensors, values
from tolerances import LOW_PRECISION_FLIPPED, LOW_PRECISION_NEAR, LOW_PRECISION_STEP
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.backends.reference_storage import read_moment, read_weight
from stackelberg_fused.backends.triton import is_interpreting
from stackelberg_fused.groups.schemes import MASTERS, has_moment, scheme_of
from stackelberg_fused.groups.schemes import MOMENTS as MOMENT_NAMES
from stackelberg_fused.memory.arena import in_memory_order
from stackelberg_fused.numerics.block_rows import block_row_of

SIZES = [(0,), (1,), (31,), (32,), (33,), (511,), (513,), (4095,), (4097,), (3, 5000)]
ROUNDS = 3  # steps
if is_interpreting():
    SIZES, ROUNDS = [(0,), (33,), (4097,), (2, 300)], 2
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# what a weight and its gradient may be, by their dtypes, and what is beside the weight
WEIGHTS = [("float32", grad, None) for grad in DTYPES] + [
    (name, grad, master)
    for master, dtypes in MASTERS.items()
    for name, dtype in DTYPES.items()
    if dtype in dtypes
    for grad in ({name, "float32"} if master != "split16" else DTYPES)
]
WEIGHTS = sorted(WEIGHTS, key=str)
by_weight = pytest.mark.parametrize("weight", WEIGHTS, ids=str)
CODES = ("exp_avg_code", "exp_avg_sq_code", "exp_avg_scale", "exp_avg_sq_scale")
STATES = ["float32", "bfloat16", "8bit"]
by_state = pytest.mark.parametrize("state_dtype", STATES)


def pair(
    options: Options,
    weight: tuple[str, str, str | None],
    backend: str,
    other: str = "reference",
    **how: Any,
) -> list[Any]:
    """Two optimizers over the same parameters."""
    dtype, grad, master = weight
    if grad != dtype and not hasattr(Tensor, "grad_dtype"):
        pytest.skip("in this torch a gradient has the dtype of its parameter")
    found = []
    for name in (backend, other):
        params = []
        for i, size in enumerate(SIZES):
            p = nn.Parameter(values(size, i).to(chosen(name)[1], DTYPES[dtype]))
            if grad != dtype:
                p.grad_dtype = None
            params.append(p)
        groups = [
            {"params": params[:-1]},
            {"params": params[-1:], "role": "head", "ema_decay": 0.9},
        ]
        how = {"lr": 0.01, "head_lr_ratio": 3.0, "float32_state": "none", "master": master, **how}
        found.append(options.ours(groups, backend=chosen(name)[0], **how))
    return found


def give(optimizers: list[Any], step: int, grad: str, special: bool = False) -> None:
    for optimizer in optimizers:
        params = [p for g in optimizer.param_groups for p in g["params"]]
        for i, p in enumerate(params):
            p.grad = values(tuple(p.shape), 100 * step + i, special).to(p.device, DTYPES[grad])


def assert_same(ours: Any, reference: Any, *only: str) -> None:
    """The same bits, but for those of NaN and the sign of zero, which depends on how a rule is written."""
    expected = tensors(reference)
    for name, found in tensors(ours).items():
        if rounds_fma_twice() and name.startswith("ema"):
            continue
        want = expected[name]
        if found.is_floating_point():
            assert torch.equal(found.isnan(), want.isnan()), name
            found, want = (t.nan_to_num(123.0, torch.inf, -torch.inf) + 0.0 for t in (found, want))
        elif name.startswith(("exp_avg_code", "momentum_buffer_code")):
            found, want = (torch.where(t == 128, 0, t) for t in (found, want))
        if not only or name.split()[0] in only:
            assert_same_bits(found, want, name)


# their moments are the gradient and its square, to the bit in every language, and the weight stays what it is
MOMENTS = Options("adamw", {"betas": (0.0, 0.0), "weight_decay": 0.0})
# the weight is minus the gradient
WEIGHT = Options("sgd")


@by_state
@by_weight
@by_native_backend
def test_moments_are_stored_as_the_reference_stores_them(
    backend: str, weight: Any, state_dtype: str
) -> None:
    ours, reference = pair(MOMENTS, weight, backend, state_dtype=state_dtype, lr=0.0)
    for step in range(ROUNDS):
        is_last = step == ROUNDS - 1
        give([ours, reference], step, weight[1], special=is_last)
        for optimizer in (ours, reference):
            optimizer.step()
        # a weight is infinite or NaN where its moments are, in its own way
        moments = ("exp_avg", "exp_avg_sq", *CODES)
        assert_same(ours, reference, *(moments if is_last else ()))


@by_weight
@by_native_backend
def test_weights_are_stored_as_the_reference_stores_them(backend: str, weight: Any) -> None:
    ours, reference = pair(WEIGHT, weight, backend, lr=1.0, head_lr_ratio=1.0)
    for optimizer in (ours, reference):
        for tensor in (p for g in optimizer.param_groups for p in g["params"]):
            tensor.detach().zero_()
    for special in (False, True):
        give([ours, reference], 5 + special, weight[1], special)
        for optimizer in (ours, reference):
            optimizer.step()
        assert_same(ours, reference)


STEPS = [
    Options("adamw", {"weight_decay": 0.1}),
    Options("adam", {"amsgrad": True, "weight_decay": 0.1, "maximize": True}),
    Options("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    Options("adamw", {"cautious": True, "weight_decay": 0.1}),
]


def opened(optimizer: Any) -> dict[str, Tensor]:
    """Return what is stored, as float32."""
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            scheme = scheme_of(group, p)
            entry = optimizer.state[p]
            flat = {
                n: t.reshape(-1) if n.endswith("_scale") else in_memory_order(t)
                for n, t in entry.items()
                if t.dim()
            }
            row = block_row_of(next(t for t in entry.values() if t.shape == p.shape))
            at = len(found)
            found[f"weight {at}"] = read_weight(scheme, in_memory_order(p.detach()), flat)
            for name in (name for name in MOMENT_NAMES if has_moment(entry, name)):
                found[f"{name} {at}"] = read_moment(scheme, name, flat, row)
    return found


@by_state
@by_weight
@pytest.mark.parametrize("options", STEPS, ids=str)
@by_native_backend
def test_a_step_is_near_the_references(
    backend: str, options: Options, weight: Any, state_dtype: str
) -> None:
    """But for the few elements that an ulp makes round the other way, by the same random number."""
    at = WEIGHTS.index(weight) + STATES.index(state_dtype)
    if is_interpreting() and options is not STEPS[at % len(STEPS)]:
        pytest.skip("left out: the interpreter's time, see the docstring of this file")
    ours, reference = pair(options, weight, backend, state_dtype=state_dtype)
    for step in range(ROUNDS):
        give([ours, reference], step, weight[1])
        for optimizer in (ours, reference):
            optimizer.step()
    assert_near(ours, reference)


def assert_near(ours: Any, reference: Any) -> None:
    expected = opened(reference)
    for name, found in opened(ours).items():
        error = (found - expected[name]).abs()
        other = error > LOW_PRECISION_NEAR * (expected[name].abs() + 0.01)
        assert other.sum() <= LOW_PRECISION_FLIPPED * len(other) + 3, name
        assert (error <= LOW_PRECISION_STEP * (expected[name].abs() + 0.01)).all(), name


EXTRAS = {
    "plain": {},
    "clipped": {"max_grad_norm": {"body": 3.0, "head": 1.0}},
    "turns": {"update_every": {"body": 2, "head": 3}, "update_every_grads": "mean"},
    "boxed": {"constraint": sf.Box(-0.3, 0.7)},
}

CHUNKS = {
    "first": [0],
    "middle": [3],
    "last": [-1],
    "every second": range(0, 17, 2),
    "all": range(17),
}


@pytest.mark.parametrize("where", CHUNKS)
@pytest.mark.parametrize("extras", ["plain", "boxed"])
@by_state
@pytest.mark.parametrize("weight", [w for w in WEIGHTS if w[0] == w[1]], ids=str)
def test_chunks_that_are_unusual_among_others(
    weight: Any, state_dtype: str, extras: str, where: str
) -> None:
    """Return those of 512 elements with infinity or NaN, which processors may take in another way than the rest."""
    elements = 17 * 512 + 300
    dtype, master = DTYPES[weight[0]], weight[2]
    optimizers = []
    for backend in ("cpu", "baseline"):
        p = nn.Parameter(values((elements,), 1).to(dtype))
        how = {"state_dtype": state_dtype, "float32_state": "none", **EXTRAS[extras]}
        if dtype != torch.float32:
            how["master"] = master
        optimizers.append(sf.StackelbergAdamW([p], lr=0.01, backend=chosen(backend)[0], **how))
    for step in range(4):
        grad = values((elements,), 7 + step)
        for k in CHUNKS[where] if step == 1 else ():
            grad.view(-1)[: 17 * 512].view(17, 512)[k, step * 100 :: 211] = torch.inf
            grad.view(-1)[: 17 * 512].view(17, 512)[k, 5 * k % 512] = torch.nan
        for optimizer in optimizers:
            optimizer.param_groups[0]["params"][0].grad = grad.to(dtype)
            optimizer.step()
    ours, expected = (tensors(optimizer) for optimizer in optimizers)
    for name, found in ours.items():
        assert_same_bits(found, expected[name], name)


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize(
    "weight, state_dtype",
    [
        (("bfloat16", "bfloat16", "split8"), "8bit"),
        (("float16", "float32", "kahan"), "bfloat16"),
        (("float32", "bfloat16", None), "8bit"),
    ],
    ids=str,
)
@by_native_backend
def test_a_whole_step_is_near_the_references(
    backend: str, weight: Any, state_dtype: str, extras: str
) -> None:
    how = {**EXTRAS[extras], "state_dtype": state_dtype}
    ours, reference = pair(STEPS[0], weight, backend, **how)
    for step in range(4):
        give([ours, reference], step, weight[1])
        for optimizer in (ours, reference):
            optimizer.step(zero_grad=step == 2)
    assert_near(ours, reference)


@pytest.mark.parametrize("extras", EXTRAS)
@by_state
@by_weight
@pytest.mark.parametrize("backend", AS_CPU if is_interpreting() else [*AS_CPU, *GPU])
def test_native_backends_give_the_same_bits(
    backend: str, weight: Any, state_dtype: str, extras: str
) -> None:
    """Random numbers among them, and gradients that a launch clears."""
    at = WEIGHTS.index(weight) + STATES.index(state_dtype)
    if is_interpreting() and extras != list(EXTRAS)[at % len(EXTRAS)]:
        pytest.skip("left out: the interpreter's time, see the docstring of this file")
    for options in STEPS if extras == "plain" else STEPS[:1]:
        how = {**EXTRAS[extras], "state_dtype": state_dtype, "seed": 5}
        ours, on_cpu = pair(options, weight, backend, "cpu", **how)
        for step in range(4):
            give([ours, on_cpu], step, weight[1], special=step == 3)
            for optimizer in (ours, on_cpu):
                optimizer.step(zero_grad=step == 2)
        expected = tensors(on_cpu)
        for name, found in tensors(ours).items():
            assert_same_bits(found, expected[name], name)
        if extras == "clipped":
            for name, norm in on_cpu.last_step.grad_norm.items():
                assert_same_bits(ours.last_step.grad_norm[name], norm)
