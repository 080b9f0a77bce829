"""Does a contestant of fewer bits make the reference's step, as far as its bits can tell?

What a parameter alone holds may be a step of its dtype off, rounded to nearest or by chance; what ours keep beside it
and their moments are decoded, and held to what their formats promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .contestant import Contestant
from .low_precision import OUR_BLOCK
from .parity import PEER_ERROR, Expected

# of a larger parameter so many parts of so many elements are compared: to decode all takes minutes
PARTS, PART = 4, 1 << 16
# of the update that our weight makes: the upper 24 bits of a float32 are off by less than 3e-4 of it
OUR_ERROR = 1e-3
# of our moments: the spread of stochastic rounding, with room for chance in small parameters
MOMENT_ERROR = {torch.float32: 1e-5, torch.bfloat16: 0.01, torch.uint8: 0.08}


class _Difference:
    """The 2-norm of what is wrong, relative to that of what it is compared with."""

    def __init__(self) -> None:
        self._wrong = self._size = 0.0

    def add(self, wrong: torch.Tensor, size: torch.Tensor) -> None:
        self._wrong += wrong.double().square().sum().item()
        self._size += size.double().square().sum().item()

    def error(self, bound: float, what: str) -> str:
        relative = (self._wrong / self._size) ** 0.5 if self._size else self._wrong
        # not ">": a NaN must not pass
        return "" if relative <= bound else f"{what} differs from AdamW's by {relative:.2%}"


def narrow_error(
    contestant: Contestant,
    params: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    expected: Expected,
) -> str:
    """Empty if `contestant`'s first step is the reference's, each parameter for itself, or an offender."""
    readers: dict[torch.Tensor, _Ours] = {}
    if contestant.family == "ours":
        groups = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        readers = {p: _Ours(group, p, optimizer.state[p]) for p, group in groups}
    threads = torch.get_num_threads()
    # many small operators, each of which would wait for its threads
    torch.set_num_threads(1)
    try:
        return _first_error(params, readers, expected)
    finally:
        torch.set_num_threads(threads)


def _first_error(
    params: list[torch.nn.Parameter], readers: Mapping[torch.Tensor, _Ours], expected: Expected
) -> str:
    for i, p in enumerate(params):
        where = f"of parameter {i} of shape {tuple(p.shape)}"
        wanted = (
            expected.start[i],
            expected.params[i],
            expected.exp_avg[i],
            expected.exp_avg_sq[i],
        )
        if error := _error(p, readers.get(p), wanted, where):
            return error
    return ""


def _error(
    p: torch.nn.Parameter, ours: _Ours | None, wanted: tuple[torch.Tensor, ...], where: str
) -> str:
    start, after, *moments = (t.detach().reshape(-1) for t in wanted)
    weights, firsts, seconds = _Difference(), _Difference(), _Difference()
    rounded = p.dtype is torch.bfloat16 and not (ours and ours.is_wide)
    for part in _parts(p.numel()):
        stored = p.detach().reshape(-1)[part]
        weight = stored.float() if ours is None else ours.weight(stored, part)
        wrong = (weight - after[part]).abs_()
        if rounded:
            largest = torch.maximum(weight.abs(), after[part].abs())
            wrong = wrong.sub_(_step(largest)).clamp_(min=0)
        weights.add(wrong, after[part] - start[part])
        if ours is not None:
            for found, name, moment in zip((firsts, seconds), ours.names, moments, strict=True):
                found.add(ours.moment(name, part) - moment[part], moment[part])
    bound = PEER_ERROR if ours is None else OUR_ERROR
    error = weights.error(bound, f"the update {where}")
    if error or ours is None:
        return error
    bound = MOMENT_ERROR[ours.scheme.state]
    return firsts.error(bound, f"exp_avg {where}") or seconds.error(bound, f"exp_avg_sq {where}")


class _Ours:
    """What is stored of one of our parameters, decoded a part at a time."""

    names = ("exp_avg", "exp_avg_sq")

    def __init__(self, group: dict[str, Any], p: torch.Tensor, state: Mapping[str, Any]) -> None:
        from stackelberg_fused.backends import reference_storage
        from stackelberg_fused.groups import schemes

        self.scheme = schemes.scheme_of(group, p)
        self._state = {n: t.detach().reshape(-1) for n, t in state.items() if n != "step"}
        self._storage = reference_storage

    @property
    def is_wide(self) -> bool:
        """Whether the weight has more than its parameter."""
        return self.scheme.master_name is not None

    def weight(self, stored: torch.Tensor, part: slice) -> torch.Tensor:
        """float32 [n] of that part of the parameter."""
        return self._storage.read_weight(self.scheme, stored, self._part(part))

    def moment(self, name: str, part: slice) -> torch.Tensor:
        """float32 [n]."""
        return self._storage.read_moment(self.scheme, name, self._part(part))

    def _part(self, part: slice) -> dict[str, torch.Tensor]:
        blocks = slice(part.start // OUR_BLOCK, -(-part.stop // OUR_BLOCK))
        return {n: t[blocks if n.endswith("_scale") else part] for n, t in self._state.items()}


def _parts(numel: int) -> Iterator[slice]:
    """All of it, or parts from the first element to the last; they begin where a block does."""
    if numel <= PARTS * PART:
        yield slice(0, numel)
        return
    apart = (numel - PART) // (PARTS - 1) // OUR_BLOCK * OUR_BLOCK
    for i in range(PARTS - 1):
        yield slice(i * apart, i * apart + PART)
    yield slice((PARTS - 1) * apart, numel)


def _step(x: torch.Tensor) -> torch.Tensor:
    """Distance between bfloat16 numbers of the size of `x`."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 8)
