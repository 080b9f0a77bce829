"""What a training does with streams, graphs and optimizers, each of which has to end with the bits of `cpu`."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from cases import gradient
from checks import all_params
from torch import Tensor, nn

import stackelberg_fused as sf

from .training import Training, arrive, gradients_arrive

Scenario = Callable[[Training], None]
BALLS = {"constraint": {"body": sf.L2Ball(2.0), "head": sf.Simplex(1.0)}}
TURNS = {"update_every": {"body": 2, "head": 3}, "update_every_grads": "mean"}
EVERYTHING: dict[str, Any] = {**BALLS, **TURNS, "max_grad_norm": 1.0, "ema_decay": 0.9}
CAPTURABLE = {**EVERYTHING, "capturable": True}


def one_after_the_other(training: Training) -> None:
    for _ in range(4):
        training.step()


def zeroing(training: Training) -> None:
    """Launches that clear flat gradients."""
    for _ in range(3):
        training.backward_into_place()
        training.both(lambda side: side.step(zero_grad=True))


def edited(training: Training) -> None:
    for number in range(4):
        training.step()
        for side in (training.opt, training.cpu):
            head, body = side.param_groups
            for group in (head, body):
                group["lr"] *= 0.9
            if number == 1:
                body.update(weight_decay=0.2, amsgrad=True)
            if number == 2:
                head["nesterov"] = True


def rate_on_gpu(training: Training) -> None:
    """Rates in tensors that the GPU changes."""
    for side, place in training.places():
        for number, group in enumerate(side.param_groups):
            group["lr"] = place(torch.tensor(0.02 / (1 + number)))
    for _ in range(3):
        training.step()
        training.both(lambda side: [group["lr"].mul_(0.5) for group in side.param_groups])


def scaled(training: Training) -> None:
    """As torch's GradScaler has a fused optimizer do it; the third step is skipped."""
    for number in range(4):
        training.backward(factor=4.0)
        for side, place in training.places():
            side.grad_scale = place(torch.tensor(4.0))
            side.found_inf = place(torch.tensor(float(number == 2)))
            side.step()
            del side.grad_scale, side.found_inf
        training.zero_grad()


def looked_for_infinities(training: Training) -> None:
    """By the statistics launch, for this library's scaler."""
    usable = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False)
    with usable:
        scalers = [sf.GradScaler("cuda", init_scale=8.0), sf.GradScaler("cpu", init_scale=8.0)]
    for number in range(4):
        training.backward(factor=math.inf if number == 2 else 8.0)
        for scaler, (side, place) in zip(scalers, training.places(), strict=True):
            scaler.scale(place(torch.ones(())))
            scaler.step(side)
            scaler.update()
        training.zero_grad()


def alternating(training: Training) -> None:
    """Both evaluations of a step within one graph."""
    gpu = training.gpu

    def closure_of(side: Any, place: Callable[[Any, int], Tensor]) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            side.zero_grad()
            params = all_params(side)
            for k, p in enumerate(params):
                p.grad = place(p, k) + 0.5 * p.detach()
            return params[-1].detach().sum()

        return closure

    on_gpu = closure_of(training.opt, lambda p, k: training.on_gpu(p.numel(), k))
    on_cpu = closure_of(training.cpu, lambda p, k: gradient(p.numel(), k % 7))
    for _ in range(2):
        training.opt.step(on_gpu)
        training.cpu.step(on_cpu)
    for _, p, _ in training.params():
        p.grad.add_(1.0)  # whether these are zero cannot be asked under capture
    with gpu.captured() as graph:
        training.opt.step(on_gpu)
    for _ in range(2):
        graph.replay()
        training.cpu.step(on_cpu)


def moving_between_streams(training: Training) -> None:
    """Each step on another stream than the one before, whom the caller has it wait for."""
    gpu = training.gpu
    streams = gpu.new_stream(), gpu.new_stream()
    streams[1].wait_stream(gpu.default)
    for number in range(5):
        stream = streams[number % 2]
        stream.wait_stream(streams[1 - number % 2] if number else gpu.default)
        with gpu.on_stream(stream):
            training.step()
    gpu.default.wait_stream(stream)


def roles_on_streams(training: Training) -> None:
    """Each player on a stream of its own, and nobody orders the two."""
    gpu = training.gpu
    training.step()
    streams = {role: gpu.new_stream() for role in ("body", "head")}
    for stream in streams.values():
        stream.wait_stream(gpu.default)
    for _ in range(4):
        for role, stream in streams.items():
            with gpu.on_stream(stream):
                training.step(role)


def rebuilt(training: Training) -> None:
    """Tables that are built anew while steps over the old ones are in flight, on another stream than before."""
    gpu = training.gpu
    training.step()
    for side, place in training.places():
        side.add_param_group({"params": [nn.Parameter(place(gradient(50, 77)))]})
    training.step()
    stream = gpu.new_stream()
    stream.wait_stream(gpu.default)
    with gpu.on_stream(stream):
        training.step()
        training.both(lambda side: side.load_state_dict(side.state_dict()))
        training.step()
    gpu.default.wait_stream(stream)
    training.step()


def dropped(training: Training) -> None:
    """An optimizer that goes while its last step is in flight, on another stream than the first."""
    gpu = training.gpu
    training.step()
    stream = gpu.new_stream()
    stream.wait_stream(gpu.default)
    with gpu.on_stream(stream):
        training.step()
    kept = [(p, dict(training.opt.state[p])) for _, p, _ in training.params()]
    training.opt = None
    gc.collect()
    others = [gpu.tensor(torch.ones(n)) for n in (1, 5, 40) for _ in range(4)]
    gpu.default.wait_stream(stream)
    training.opt = _Kept(training.cpu, kept)
    del others


class _Kept:
    """Parameters and state that are there without their optimizer."""

    def __init__(self, cpu: Any, kept: list[tuple[Tensor, dict[str, Any]]]) -> None:
        params = iter(kept)
        self.state = dict(kept)
        self.param_groups = [
            {"params": [next(params)[0] for _ in group["params"]]} for group in cpu.param_groups
        ]


def joint_sets_of_another_stream(training: Training) -> None:
    """Sets that an edit makes whose step fails, before one that is taken on another stream."""
    gpu = training.gpu
    training.step()
    stream = gpu.new_stream()
    stream.wait_stream(gpu.default)
    with gpu.on_stream(stream):
        for unit in training.opt._ready().units:
            unit.table.set_joint_sets()
    training.step()


def captured_at_once(training: Training) -> None:
    """A capture of the first step, which is refused."""
    training.backward()
    with training.gpu.captured(), pytest.raises(RuntimeError, match="in a CUDA graph"):
        training.opt.step()
    training.zero_grad()
    training.step()


def replayed(training: Training) -> None:
    """Two graphs, steps between their replays, and other gradients than those that a graph knows."""
    gpu = training.gpu
    for _ in range(2):
        training.step()
    graphs = []
    for _ in range(2):
        training.backward()
        kept = [(p, p.grad, q, q.grad) for _, p, q in training.params()]
        with gpu.captured() as graph:
            training.opt.step()
        graphs.append((graph, kept))
        training.zero_grad()
    for number in range(3):
        for graph, kept in graphs:
            for _, _, q, grad in kept:
                q.grad = grad
            graph.replay()
            training.cpu.step()
            training.cpu.zero_grad()
            training.backward()
            for k, p, q in training.params():
                if k in (0, 3) and number == 1:
                    p.grad = q.grad = None
            training.both(lambda side: side.step())
            training.zero_grad()


def replayed_when_rebuilt(training: Training) -> None:
    """A graph that outlives the tables that it was captured from: it still steps the parameters that it knows."""
    gpu = training.gpu
    training.step()
    training.backward()
    with gpu.captured() as graph:
        training.opt.step()
    graph.replay()
    training.cpu.step()
    gradients = [p.grad for _, p, _ in training.params()]
    training.zero_grad()
    training.both(lambda side: side.load_state_dict(side.state_dict()))
    training.step()
    # what it does is not compared: it must not touch what is not there any more
    tensors = [p.detach() for _, p, _ in training.params()]
    for _, p, _ in training.params():
        tensors += [t for t in training.opt.state[p].values() if isinstance(t, Tensor)]
    before = [t.clone() for t in tensors]
    graph.replay()
    for tensor, value in zip(tensors, before, strict=True):
        tensor.copy_(value)
    gpu.synchronize()
    del gradients


def warmed_up(training: Training) -> None:
    """The recipe of torch's notes: the first steps on a stream beside, then the capture."""
    gpu = training.gpu
    stream = gpu.new_stream()
    stream.wait_stream(gpu.default)
    with gpu.on_stream(stream):
        for _ in range(2):
            training.step()
    gpu.default.wait_stream(stream)
    training.backward()
    with gpu.captured() as graph:
        training.opt.step()
    for _ in range(3):
        graph.replay()
        training.cpu.step()


def released(training: Training, last_first: bool = False) -> None:
    """Updates during the backward pass, whose later kernels take over the memory of gradients that are through.

    Args:
        last_first: gradients come in such an order that some wait for `step()`.
    """
    gpu = training.gpu
    reduction = gpu.new_stream()
    for number in range(4):
        with gradients_arrive() as finish:
            both = [*training.params()]
            for k, p, q in both[::-1] if last_first else [*both[2::-1], *both[:2:-1]]:
                seed = 100 * number + k
                q.grad = gradient(q.numel(), seed % 7).clone()
                reduction.wait_stream(gpu.default)
                # of some parameters another stream computes the gradient last, as a reduction does
                with gpu.on_stream(reduction if k in (2, 3) else gpu.default):
                    p.grad = training.on_gpu(p.numel(), seed) * 1.0
                    arrive(p)
                for size in (300, 4097):
                    training.on_gpu(size, 3) * 2.0
            gpu.default.wait_stream(reduction)
            finish()
        training.both(lambda side: side.step())
        training.zero_grad()
        # what comes next reads the parameters
        assert all(p.sum() is not None for _, p, _ in training.params())


def released_in_step(
    training: Training, roles: tuple[str | None, ...] = (None,), accumulates: bool = False
) -> None:
    """Gradients of another stream that are too few to be updated before `step()`, of each of these roles.

    Args:
        accumulates: no later microbatch follows.
    """
    gpu = training.gpu
    reduction = gpu.new_stream()
    for _ in range(3):
        waiting = training.opt.accumulate() if accumulates else nullcontext()
        with gradients_arrive() as finish, waiting:
            for k, p, q in training.params():
                if k in (1, 2):
                    q.grad = gradient(q.numel(), k).clone()
                    reduction.wait_stream(gpu.default)
                    with gpu.on_stream(reduction):
                        p.grad = training.on_gpu(p.numel(), k) * 1.0
                        arrive(p)
            gpu.default.wait_stream(reduction)
            finish()
        for role in roles:
            training.both(lambda side, role=role: side.step(role=role))
        training.cpu.zero_grad()


SCENARIOS: dict[str, tuple[Scenario, dict[str, Any]]] = {
    "steps": (one_after_the_other, {}),
    "everything": (one_after_the_other, EVERYTHING),
    "everything, capturable": (one_after_the_other, CAPTURABLE),
    "bfloat16 state": (one_after_the_other, {"state_dtype": "bfloat16"}),
    "8-bit state": (one_after_the_other, {"state_dtype": "8bit"}),
    "zeroing": (zeroing, {"grads": "flat"}),
    "edited": (edited, {}),
    "edited, capturable": (edited, {"capturable": True}),
    "rate on the GPU": (rate_on_gpu, {}),
    "scaled": (scaled, EVERYTHING),
    "looked for infinities": (looked_for_infinities, EVERYTHING),
    "alternating": (alternating, {"mode": "alternating", "capturable": True}),
    "moving": (moving_between_streams, EVERYTHING),
    "moving, capturable": (moving_between_streams, CAPTURABLE),
    "roles": (roles_on_streams, EVERYTHING),
    "roles, capturable": (roles_on_streams, CAPTURABLE),
    "rebuilt": (rebuilt, CAPTURABLE),
    "dropped": (dropped, CAPTURABLE),
    "joint sets of another stream": (joint_sets_of_another_stream, BALLS),
    "captured at once": (captured_at_once, {"capturable": True}),
    "captured at once, balls": (captured_at_once, {"capturable": True, **BALLS}),
    "replayed": (replayed, CAPTURABLE),
    "replayed when rebuilt": (replayed_when_rebuilt, {"capturable": True}),
    "warmed up": (warmed_up, CAPTURABLE),
    "released": (released, {"release": "backward"}),
    "released at the end": (partial(released, last_first=True), {"release": "backward"}),
    "released in step": (released_in_step, {"release": "backward"}),
    "released in steps of roles": (
        partial(released_in_step, roles=("head", "body")),
        {"release": "backward"},
    ),
    "released in step, accumulated": (
        partial(released_in_step, roles=("head", "body"), accumulates=True),
        {"release": "backward"},
    ),
    "released, ball": (released, {"release": "backward", "constraint": {"head": sf.L2Ball(2.0)}}),
}
