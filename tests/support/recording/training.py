"""The same training on the recorded GPU, where everything is enqueued, and on `cpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from cases import gradient
from checks import all_params, assert_same_optimizers
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.backends.cuda import CudaBackend
from stackelberg_fused.optimizers import release

from .order import AsLateAsPossible, AtRandom, Schedule
from .runtime import RecordingRuntime

SIZES = (0, 1, 17, 4097, 300, 200, 150)
SCHEDULES = {
    "at once": Schedule,
    "late": AsLateAsPossible,
    **{f"random {seed}": (lambda seed=seed: AtRandom(seed)) for seed in (1,)},
}


class Training:
    """A StackelbergAdamW whose head moves by SGD, twice.

    Args:
        gpu: where one of them is.
        settings: of both.
    """

    def __init__(self, gpu: RecordingRuntime, **settings: Any) -> None:
        self.gpu = gpu
        self.opt: Any = self._make(gpu.tensor, CudaBackend(), settings)
        of_cpu = {name: value for name, value in settings.items() if name != "release"}
        self.cpu: Any = self._make(Tensor.clone, "cpu", of_cpu)
        self._number = 0
        # what gradients are computed from lies on the GPU before anything begins
        kinds = [(size, seed) for size in (*SIZES, 50) for seed in range(7)]
        self._gradients = {kind: gpu.tensor(gradient(*kind)) for kind in kinds}
        gpu.synchronize()

    @staticmethod
    def _make(place: Any, backend: Any, settings: dict[str, Any]) -> Any:
        params = [nn.Parameter(place(gradient(n, k))) for k, n in enumerate(SIZES)]
        groups = [
            {"params": params[:2], "role": "head", "rule": "sgd", "momentum": 0.9},
            {"params": params[2:]},
        ]
        return sf.StackelbergAdamW(groups, **{"lr": 1e-2, "backend": backend, **settings})

    def on_gpu(self, size: int, seed: int) -> Tensor:
        """A gradient that lies on the GPU since long ago, from which others are computed."""
        return self._gradients[size, seed % 7]

    def params(self, role: str | None = None) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Number, parameter on the GPU, parameter on the CPU."""
        roles = [g["role"] for g in self.cpu.param_groups for _ in g["params"]]
        both = zip(roles, all_params(self.opt), all_params(self.cpu), strict=True)
        for k, (of, p, q) in enumerate(both):
            if role in (None, of):
                yield k, p, q

    def backward(self, role: str | None = None, factor: float = 1.0) -> None:
        """New gradients of a role on both sides; on the GPU the current stream computes them."""
        self._number += 1
        for k, p, q in self.params(role):
            seed = 100 * self._number + k
            p.grad = self.on_gpu(p.numel(), seed) * factor
            q.grad = gradient(q.numel(), seed % 7) * factor

    def backward_into_place(self) -> None:
        """As `backward`, into the gradients that there are."""
        self._number += 1
        for k, p, q in self.params():
            seed = 100 * self._number + k
            if p.grad is None:
                p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
            p.grad.copy_(self.on_gpu(p.numel(), seed))
            q.grad.copy_(gradient(q.numel(), seed % 7))

    def both(self, call: Callable[[Any], Any]) -> None:
        """Call something with each optimizer."""
        for side in (self.opt, self.cpu):
            call(side)

    def places(self) -> list[tuple[Any, Callable[[Tensor], Tensor]]]:
        """Each optimizer, and what puts values where it is."""
        return [(self.opt, self.gpu.tensor), (self.cpu, Tensor.clone)]

    def zero_grad(self) -> None:
        for side in (self.opt, self.cpu):
            side.zero_grad()

    def step(self, role: str | None = None, factor: float = 1.0, **more: Any) -> None:
        """A backward pass and a step of both, after which gradients are let go."""
        self.backward(role, factor)
        self.opt.step(role=role, **more)
        self.cpu.step(role=role, **more)
        for _, p, q in self.params(role):
            p.grad = q.grad = None

    def check(self) -> None:
        """Nothing was reported, and both are equal to the bit."""
        self.gpu.synchronize()
        assert not self.gpu.reports, "\n".join(self.gpu.reports)
        assert_same_optimizers(self.opt, self.cpu)


@contextmanager
def gradients_arrive() -> Iterator[Callable[[], None]]:
    """Within this context a backward pass goes on, to whose end it yields the call. torch's own needs a real device."""
    later: list[Callable[[], None]] = []

    def at_end(call: Callable[[], None]) -> bool:
        later.append(call)
        return True

    with mock.patch.object(release, "at_end_of_backward", at_end):
        yield lambda: [call() for call in later].clear()


def arrive(param: Tensor) -> None:
    """The gradient of a parameter is complete."""
    for hook in param._post_accumulate_grad_hooks.values():
        hook(param)


@contextmanager
def recorded(schedule: str = "late") -> Iterator[RecordingRuntime]:
    """Within this context there is a recorded GPU."""
    with RecordingRuntime(SCHEDULES[schedule]()).installed() as gpu:
        yield gpu
