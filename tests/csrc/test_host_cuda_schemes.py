"""Schemes with a path of their own in the CUDA kernel, on the host: bits of the CPU kernel, and bytes moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import assert_same_optimizers
from host_cuda.backend import Counters, HostCudaBackend, counters
from host_cuda.build import unavailable
from low_precision_values import values
from named_schemes import NAMED, Named
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.native.tables import TILE_ELEMENTS
from stackelberg_fused.numerics.block_rows import block_row_of

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())

by_scheme = pytest.mark.parametrize("named", NAMED.values(), ids=NAMED)
# full tiles, and with ragged ends
SIZES = [(TILE_ELEMENTS,), (2, TILE_ELEMENTS), (TILE_ELEMENTS + 1,), (3, 5000)]
RULES = {
    "adamw": (sf.StackelbergAdamW, {"weight_decay": 0.1, "maximize": True}),
    "adam": (sf.StackelbergAdam, {"weight_decay": 0.1}),
    "amsgrad": (sf.StackelbergAdamW, {"amsgrad": True}),
    "averaged": (sf.StackelbergAdamW, {"ema_decay": 0.9}),
    "cautious": (sf.StackelbergAdamW, {"cautious": True, "weight_decay": 0.1}),
    "momentum": (sf.StackelbergSGD, {"momentum": 0.9}),
    "boxed": (sf.StackelbergAdamW, {"constraint": sf.Box(-0.3, 0.7)}),
}


def optimizer(backend: object, named: Named, rule: str = "adamw", **how: Any) -> Any:
    params = [nn.Parameter(values(size, i).to(named.scheme.param)) for i, size in enumerate(SIZES)]
    kind, settings = RULES[rule]
    how = {"lr": 0.01, "seed": 5, **named.settings, **settings, **how}
    return kind(params, backend=backend, **{"float32_state": "none", **how})


def give(opt: Any, step: int, special: bool = False, off: int = 0) -> None:
    """Gradients, so many elements off a boundary of 16 bytes."""
    for i, p in enumerate(p for group in opt.param_groups for p in group["params"]):
        memory = torch.zeros(p.numel() + off, dtype=p.dtype)
        p.grad = memory[off:].view(p.shape)
        p.grad.copy_(values(tuple(p.shape), 100 * step + i, special))


def moved_by_a_step(opt: Any) -> Counters:
    before = counters()
    opt.step()
    return counters().since(before)


@by_scheme
@pytest.mark.parametrize("off", [0, 1, 4], ids="off {}".format)
@pytest.mark.parametrize("rule", RULES)
def test_the_bits_of_the_cpu_kernel(rule: str, off: int, named: Named) -> None:
    ours, on_cpu = (
        optimizer(backend, named, rule) for backend in (HostCudaBackend("shuffled", seed=1), "cpu")
    )
    # infinity and NaN, which have codes from then on, beside tiles where everything is in range
    for step in range(5):
        for opt in (ours, on_cpu):
            give(opt, step, special=step == 2, off=off)
            opt.step()
        assert_same_optimizers(ours, on_cpu, f"step {step}")


@by_scheme
def test_moments_at_the_ends_of_their_scales(named: Named) -> None:
    """Scales that are held back, moments that overflow, blocks of zeros and of subnormal numbers."""
    ours, on_cpu = (optimizer(b, named, betas=(0.5, 0.5)) for b in (HostCudaBackend(), "cpu"))
    for step in range(4):
        for opt in (ours, on_cpu):
            give(opt, step)
            for p in opt.param_groups[0]["params"]:
                blocks = p.grad.view(-1)[: p.numel() // 32 * 32].view(-1, 32)
                for k, scale in enumerate((0.0, 1e-38, 1e-20, 1e18, 1e19, 1e30, 1e38, 3e38)):
                    blocks[k * 3 :: 24] *= scale
                    blocks[k * 3 + 1 :: 24, 5:] *= scale
            opt.step()
        assert_same_optimizers(ours, on_cpu, f"step {step}")


@by_scheme
def test_bytes_per_parameter_of_full_tiles(named: Named) -> None:
    opt = optimizer(HostCudaBackend(), named)
    # tiles of rows that end within a block of codes take the other path
    params = [p for p in opt.param_groups[0]["params"] if not (named.has_codes and block_row_of(p))]
    full = sum(p.numel() // TILE_ELEMENTS for p in params) * TILE_ELEMENTS
    for step in range(2):
        give(opt, step)
        moved = moved_by_a_step(opt)
        assert moved.launches == 1
        assert moved.vector_bytes == sum(named.bytes_moved()) * full


@by_scheme
def test_bytes_per_parameter_in_numbers(named: Named) -> None:
    opt = optimizer(HostCudaBackend(), named)
    give(opt, 0)
    for p in opt.param_groups[0]["params"][2:]:
        p.grad = None
    moved = moved_by_a_step(opt)
    # two threads read a block's scale, at one address: one access of their warp
    repeated = named.bytes_of_scales
    assert moved.bytes == (named.stated + repeated) * 3 * TILE_ELEMENTS
    assert moved.vector_bytes == int(named.stated) * 3 * TILE_ELEMENTS


@by_scheme
def test_a_gradient_that_is_not_aligned_takes_the_other_path(
    named: Named,
) -> None:
    opt = optimizer(HostCudaBackend(), named)
    give(opt, 0, off=1)
    assert moved_by_a_step(opt).vector_bytes == 0


def test_a_launch_that_mixes_schemes_moves_what_each_of_them_does() -> None:
    """Matrices with state of fewer bits beside vectors with float32 state, as by default, and float32 parameters."""
    params = [nn.Parameter(values(size, i)) for i, size in enumerate(SIZES)]
    for p in params[:3]:
        p.data = p.data.bfloat16()
    how = {"lr": 0.01, "backend": HostCudaBackend()}
    groups = [
        {"params": params[:3], "state_dtype": "8bit", "master": "stochastic"},
        {"params": params[3:], "state_dtype": "bfloat16", "role": "head"},
    ]
    opt = sf.StackelbergAdamW(groups, **how)
    give(opt, 0)
    moved = moved_by_a_step(opt)
    assert (moved.launches, moved.blocks) == (1, 1 + 2 + 2 + 4)
    # by size: a vector, a matrix in codes, a vector, a float32 matrix
    assert moved.vector_bytes == (22 + 2 * 10 + 22 + 3 * 20) * TILE_ELEMENTS
