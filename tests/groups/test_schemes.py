"""What each way to store weights and state promises, held against training in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends import by_host_backend, chosen
from cases import Options, gradient, normal
from checks import assert_same_bits
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.backends.reference_storage import read_moment, read_weight
from stackelberg_fused.groups.schemes import MASTERS, scheme_of
from stackelberg_fused.memory.arena import in_memory_order
from stackelberg_fused.numerics.block_rows import block_row_of
from stackelberg_fused.numerics.codec import split

ADAMW = Options("adamw", {"weight_decay": 0.1})
RULES = [
    ADAMW,
    Options("adam", {"amsgrad": True, "weight_decay": 0.1}),
    Options("sgd", {"momentum": 0.9, "weight_decay": 0.1}),
    Options("sgd"),
]
SIZE = (5, 61)
by_rule = pytest.mark.parametrize("options", RULES, ids=str)


def one(dtype: torch.dtype, options: Options = ADAMW, size: Any = SIZE, **how: Any) -> Any:
    """An optimizer of one parameter."""
    how = {"float32_state": "none", "lr": 0.01, **how}
    return options.ours([nn.Parameter(normal(size, 1).to(dtype))], **how)


def param_of(optimizer: Any) -> nn.Parameter:
    return optimizer.param_groups[0]["params"][0]


def stored(optimizer: Any) -> tuple[Any, Tensor, dict[str, Tensor]]:
    param = param_of(optimizer)
    scheme = scheme_of(optimizer.param_groups[0], param)
    flat = {
        n: t.reshape(-1) if n.endswith("_scale") else in_memory_order(t)
        for n, t in optimizer.state[param].items()
        if t.dim()
    }
    return scheme, in_memory_order(param.detach()), flat


def weight(optimizer: Any) -> Tensor:
    """The weight that is stored, flat."""
    return read_weight(*stored(optimizer))


def moment(optimizer: Any, name: str) -> Tensor:
    scheme, _, state = stored(optimizer)
    return read_moment(scheme, name, state, block_row_of(param_of(optimizer)))


def train(optimizer: Any, steps: range, dtype: torch.dtype | None = None) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = gradient(tuple(p.shape), step).to(p.dtype)
        optimizer.step()


@by_rule
@by_host_backend
def test_split16_is_float32_training(backend: str, options: Options) -> None:
    """Bit for bit, by gradients at the same bfloat16 copies."""
    exact = one(torch.float32, options, backend=chosen(backend)[0])
    ours = one(torch.bfloat16, options, backend=chosen(backend)[0], master="split16")
    with torch.no_grad():
        param_of(exact).copy_(param_of(ours).float())
    for _ in range(20):
        copy = split(param_of(exact).detach().view(-1), 16)[0].view(SIZE)
        assert_same_bits(param_of(ours).detach(), copy)
        for p in (param_of(exact), param_of(ours)):
            p.grad = (copy.float().sin() + normal(SIZE, 3)).bfloat16().to(p.dtype)
        exact.step()
        ours.step()
        assert_same_bits(weight(ours).view(SIZE), param_of(exact).detach())


@by_rule
@by_host_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_float32_master_is_float32_training(backend: str, options: Options, dtype: Any) -> None:
    exact = one(torch.float32, options, backend=chosen(backend)[0])
    ours = one(dtype, options, backend=chosen(backend)[0], master="fp32")
    with torch.no_grad():
        param_of(exact).copy_(param_of(ours).float())
    for step in range(20):
        for p in (param_of(exact), param_of(ours)):
            p.grad = gradient(SIZE, step).to(dtype).to(p.dtype)
        exact.step()
        ours.step()
        assert_same_bits(ours.state[param_of(ours)]["master"], param_of(exact).detach())
        assert_same_bits(param_of(ours).detach(), param_of(exact).detach().to(dtype))
    # a weight that somebody loads counts, the master of the one before does not
    with torch.no_grad():
        param_of(ours)[0].fill_(3.0)
    ours.param_groups[0]["lr"] = 0.0
    train(ours, range(1))
    assert (weight(ours).view(SIZE)[0] == 3.0).all()
    assert_same_bits(ours.state[param_of(ours)]["master"][1:], param_of(exact).detach()[1:])


def lost(options: Options, master: str | None, steps: int, backend: str, seed: int = 0) -> float:
    """The mean distance from float32 training after many small steps, in steps of bfloat16."""
    how = {"lr": 1e-4, "backend": chosen(backend)[0]}
    exact, ours = (
        one(torch.float32, options, **how),
        one(torch.bfloat16, options, master=master, seed=seed, **how),
    )
    with torch.no_grad():
        param_of(exact).copy_(param_of(ours).float())
    for step in range(steps):
        g = (1 + 0.1 * normal(SIZE, step)).bfloat16()
        param_of(exact).grad, param_of(ours).grad = g.float(), g
        exact.step()
        ours.step()
    error = weight(ours).view(SIZE) - param_of(exact).detach()
    return (error.abs() / (param_of(exact).detach().abs() * 2**-8)).mean().item()


@by_host_backend
def test_steps_smaller_than_rounding_are_not_lost(backend: str) -> None:
    """A weight that is rounded to nearest does not move at all by steps below half its precision."""
    steps = 60
    errors = {master: lost(ADAMW, master, steps, backend) for master in MASTERS}
    assert errors[None] > 0.5
    assert errors["stochastic"] < 0.5 * errors[None]
    # at most half a step of 24 bits each time
    assert errors["kahan"] < steps * 2**-9
    assert errors["split8"] < steps * 2**-9
    assert errors["split16"] == errors["fp32"] == 0


@by_host_backend
def test_random_numbers_are_those_of_the_seed(backend: str) -> None:
    def run(seed: int) -> list[Tensor]:
        ours = one(
            torch.bfloat16,
            backend=chosen(backend)[0],
            master="stochastic",
            state_dtype="8bit",
            seed=seed,
        )
        train(ours, range(5))
        return [param_of(ours).detach(), *ours.state[param_of(ours)].values()]

    first, again, other = run(1), run(1), run(2)
    for a, b in zip(first, again, strict=True):
        assert_same_bits(a, b)
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize("state_dtype", ["bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@by_rule
@by_host_backend
def test_moments_follow_those_of_float32(
    backend: str, options: Options, dtype: torch.dtype, state_dtype: str
) -> None:
    """Without a bias: the mean over elements that all see the same gradients is what float32 has."""
    if not options.settings.get("momentum") and options.rule == "sgd":
        return
    size = (64, 64)
    exact = one(torch.float32, options, size, backend="reference")
    ours = one(dtype, options, size, backend=chosen(backend)[0], state_dtype=state_dtype)
    for p in (param_of(exact), param_of(ours)):
        p.data.fill_(1.0)
    for step in range(60):
        value = 0.5 + torch.rand((), generator=torch.Generator().manual_seed(step)).item()
        for optimizer in (exact, ours):
            p = param_of(optimizer)
            # one large gradient per block, so that the others are not rounded alike
            p.grad = torch.full(size, value).bfloat16().to(p.dtype)
            p.grad[:, ::32] *= 3
            optimizer.param_groups[0]["lr"] = 1e-6
            optimizer.step()
    names = [
        n for n in exact.state[param_of(exact)] if n in ("exp_avg", "exp_avg_sq", "momentum_buffer")
    ]
    for name in names:
        found, expected = moment(ours, name).view(size), exact.state[param_of(exact)][name]
        for columns in (slice(1, 32), slice(0, None, 32)):
            mean, true = found[:, columns].mean().item(), expected[:, columns].mean().item()
            spread = found[:, columns].std().item() / found[:, columns].numel() ** 0.5
            assert abs(mean - true) <= 5 * spread + 1e-3 * abs(true), (name, mean, true)


@by_host_backend
def test_vectors_keep_float32_state_by_rule(backend: str) -> None:
    model = nn.Linear(64, 64).bfloat16()
    ours = sf.StackelbergAdamW(model.parameters(), state_dtype="8bit", backend=chosen(backend)[0])
    model(torch.ones(2, 64, dtype=torch.bfloat16)).sum().backward()
    ours.step()
    assert ours.state[model.weight]["exp_avg_code"].dtype is torch.uint8
    assert ours.state[model.weight]["exp_avg_scale"].shape == (64, 2)
    assert ours.state[model.bias]["exp_avg"].dtype is torch.float32


@by_host_backend
def test_each_player_may_be_stored_in_its_own_way(backend: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)).bfloat16()
    ours = sf.StackelbergAdamW(
        sf.split_body_head(model, head="1"),
        state_dtype={"body": "8bit"},
        master={"body": "split8", "head": "fp32"},
        backend=chosen(backend)[0],
    )
    model(torch.ones(2, 8, dtype=torch.bfloat16)).sum().backward()
    ours.step()
    assert ours.state[model[0].weight]["exp_avg_sq_code"].dtype is torch.uint8
    assert ours.state[model[0].weight]["remainder"].dtype is torch.int8
    assert ours.state[model[1].weight]["exp_avg_sq"].dtype is torch.float32
    assert ours.state[model[1].weight]["master"].dtype is torch.float32


@pytest.mark.parametrize("master", ["split16", "split8", "kahan", "fp32"])
@by_host_backend
def test_a_parameter_that_somebody_writes_counts(backend: str, master: str) -> None:
    """Pruned, clamped, or loaded: what was stored beside the weight before says nothing of it."""
    ours = one(torch.bfloat16, backend=chosen(backend)[0], master=master, lr=0.01)
    with torch.no_grad():
        param_of(ours).mul_(1000)
    train(ours, range(4))
    with torch.no_grad():
        param_of(ours).clamp_(min=0)
        param_of(ours)[0] = -0.0
        param_of(ours)[1] = 1e-3
    written = param_of(ours).detach().clone()
    ours.param_groups[0]["lr"] = 0.0
    train(ours, range(1))
    assert_same_bits(param_of(ours).detach() + 0.0, written + 0.0)
    # half a step of bfloat16 at most
    assert (
        (weight(ours) - written.float().view(-1)).abs() <= written.float().view(-1) * 2**-8 + 1e-38
    ).all()


@by_host_backend
def test_a_box_beyond_what_float16_holds(backend: str) -> None:
    options = Options("sgd", {"constraint": sf.Box(-1e5, 1e5)})
    ours = one(torch.float16, options, (2, 2), backend=chosen(backend)[0], lr=1.0)
    for _ in range(5):
        param_of(ours).grad = torch.full((2, 2), 30000.0).half()
        ours.step()
    assert (param_of(ours) == -65504).all()


def test_averages_of_more_bits_than_their_parameters_stay_what_they_are() -> None:
    ours = one(torch.bfloat16, ema_decay=0.99)
    train(ours, range(5))
    before, ema = param_of(ours).detach().clone(), ours.state[param_of(ours)]["ema"].clone()
    with ours.ema_weights():
        assert_same_bits(param_of(ours).detach(), ema.bfloat16())
    assert_same_bits(param_of(ours).detach(), before)
    assert_same_bits(ours.state[param_of(ours)]["ema"], ema)


@pytest.mark.parametrize("flatten", [True, False])
def test_a_frozen_parameter_that_cannot_be_stored_so_is_refused_when_it_is_trained(
    flatten: bool,
) -> None:
    params = [nn.Parameter(normal(SIZE, i).half()) for i in range(2)]
    params[1].requires_grad_(False)
    groups = [{"params": params[:1]}, {"params": params[1:], "master": "split16"}]
    ours = sf.StackelbergAdamW(groups, flatten=flatten)
    for p in params[:1]:
        p.grad = torch.ones_like(p)
    ours.step()
    before = [p.detach().clone() for p in params]
    params[1].requires_grad_(True)
    params[1].grad = torch.ones_like(params[1])
    with pytest.raises(ValueError, match=r"parameter 0 of param group 1 .*needs bfloat16"):
        ours.step()
    for p, old in zip(params, before, strict=True):
        assert_same_bits(p.detach(), old)


BAD = {
    "unknown master": (torch.bfloat16, {"master": "bf16"}, ValueError, "unknown master 'bf16'"),
    "unknown dtype": (torch.bfloat16, {"state_dtype": torch.float16}, ValueError, "unknown state_dtype"),
    "unknown rule": (torch.bfloat16, {"float32_state": "small"}, ValueError, "unknown float32_state"),
    "float16 split": (torch.float16, {"master": "split8"}, ValueError, r"parameter 0 .*needs bfloat16"),
    "float64 state": (torch.float64, {"state_dtype": "8bit"}, ValueError, r"parameter 0 .*float64"),
    "seed": (torch.bfloat16, {"seed": -1}, ValueError, "invalid seed"),
    "no seed": (torch.bfloat16, {"seed": 0.5}, TypeError, "seed must be an int"),
    "float8": (torch.float8_e4m3fn, {}, TypeError, r"parameter 0 .*its dtype is"),
    "differentiable": (
        torch.bfloat16,
        {"differentiable": True, "master": "kahan"},
        ValueError,
        "neither master nor state_dtype",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_stored_is_refused_at_construction(case: str) -> None:
    dtype, how, error, match = BAD[case]
    with pytest.raises(error, match=match):
        one(dtype, **how)
