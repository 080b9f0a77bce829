"""Parity of a low-precision contestant's first step with the reference's, as far as its bits can tell.

A parameter without further bits may be one step of its dtype off, since it is rounded to nearest or by chance. The
further bits and the moments of our contestants are decoded, and must be as near as their formats promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .contestant import Contestant
from .low_precision import OUR_BLOCK
from .parity import PEER_ERROR, Expected, RelativeError, parameter_name, single_thread

# of a larger parameter, this many parts of this many elements are compared: decoding all would take minutes
PARTS, PART = 4, 1 << 16
# of the update of our weights: the upper 24 bits of a float32 are off by less than 3e-4 of it
OUR_ERROR = 1e-3
# of our moments: the spread of stochastic rounding, with room for chance in small parameters
MOMENT_ERROR = {torch.float32: 1e-5, torch.bfloat16: 0.01, torch.uint8: 0.08}
MOMENTS = ("exp_avg", "exp_avg_sq")


def low_precision_error(
    contestant: Contestant,
    params: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    expected: Expected,
) -> str:
    """Return "" if `contestant`'s first step of each parameter is the reference's, or a difference."""
    decoders: dict[torch.Tensor, _Decoder] = {}
    if contestant.family == "ours":
        groups = [(p, group) for group in optimizer.param_groups for p in group["params"]]
        decoders = {p: _Decoder(group, p, optimizer.state[p]) for p, group in groups}
    with single_thread():
        for i, p in enumerate(params):
            if error := _parameter_error(i, p, decoders.get(p), expected):
                return error
    return ""


def _parameter_error(
    index: int, p: torch.nn.Parameter, decoder: _Decoder | None, expected: Expected
) -> str:
    tensors = (expected.start, expected.params, expected.exp_avg, expected.exp_avg_sq)
    start, after, *moments = (t[index].detach().reshape(-1) for t in tensors)
    update_error, moment_errors = RelativeError(), [RelativeError() for _ in MOMENTS]
    is_rounded = p.dtype is torch.bfloat16 and not (decoder and decoder.has_master)
    for part in _parts(p.numel(), OUR_BLOCK if decoder is None else decoder.unit):
        stored = p.detach().reshape(-1)[part]
        weight = stored.float() if decoder is None else decoder.weight(stored, part)
        difference = (weight - after[part]).abs_()
        if is_rounded:
            largest = torch.maximum(weight.abs(), after[part].abs())
            difference = difference.sub_(_bfloat16_spacing(largest)).clamp_(min=0)
        update_error.add(difference, after[part] - start[part])
        if decoder is not None:
            for error, name, moment in zip(moment_errors, MOMENTS, moments, strict=True):
                error.add(decoder.moment(name, part) - moment[part], moment[part])
    where = f"of {parameter_name(index, p)}"
    bound = PEER_ERROR if decoder is None else OUR_ERROR
    message = update_error.message(bound, f"the update {where}")
    if decoder is not None:
        bound = MOMENT_ERROR[decoder.scheme.state]
        for error, name in zip(moment_errors, MOMENTS, strict=True):
            message = message or error.message(bound, f"{name} {where}")
    return message


class _Decoder:
    """Decodes the stored weight and moments of one of our parameters, a part at a time.

    Attributes:
        unit: a part has to begin at a multiple of so many elements: a block, or a row of blocks the last of which is
            not full.
    """

    def __init__(self, group: dict[str, Any], p: torch.Tensor, state: Mapping[str, Any]) -> None:
        from stackelberg_fused.backends import reference_storage
        from stackelberg_fused.groups import schemes
        from stackelberg_fused.numerics.block_rows import block_row_of

        self.scheme = schemes.scheme_of(group, p)
        self._state = {n: t.detach().reshape(-1) for n, t in state.items() if n != "step"}
        self._storage = reference_storage
        self._row = block_row_of(p)
        self.unit = self._row or OUR_BLOCK
        self._blocks = -(-self.unit // OUR_BLOCK)  # of a unit

    @property
    def has_master(self) -> bool:
        """True if the weight has further bits beside the parameter."""
        return self.scheme.master_name is not None

    def weight(self, stored: torch.Tensor, part: slice) -> torch.Tensor:
        """Decode that part of the parameter to float32 [n]."""
        return self._storage.read_weight(self.scheme, stored, self._part(part))

    def moment(self, name: str, part: slice) -> torch.Tensor:
        """Decode that part of a moment to float32 [n]."""
        return self._storage.read_moment(self.scheme, name, self._part(part), self._row)

    def _part(self, part: slice) -> dict[str, torch.Tensor]:
        first, last = part.start // self.unit, -(-part.stop // self.unit)
        blocks = slice(first * self._blocks, last * self._blocks)
        return {n: t[blocks if n.endswith("_scale") else part] for n, t in self._state.items()}


def _parts(numel: int, unit: int) -> Iterator[slice]:
    """Yield the slice of all elements, or evenly spaced parts that begin and end at multiples of `unit` or the end."""
    if numel <= PARTS * PART:
        yield slice(0, numel)
        return
    spacing = (numel - PART) // (PARTS - 1) // unit * unit
    for i in range(PARTS - 1):
        yield slice(i * spacing, i * spacing + -(-PART // unit) * unit)
    yield slice((PARTS - 1) * spacing, numel)


def _bfloat16_spacing(x: torch.Tensor) -> torch.Tensor:
    """Return the distance between neighbouring bfloat16 numbers of the size of `x`."""
    return torch.ldexp(torch.ones_like(x), torch.frexp(x).exponent - 8)
