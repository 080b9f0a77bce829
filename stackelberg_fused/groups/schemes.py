"""Storage schemes: the formats in which a parameter's weight and its state are kept between steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..memory.presence import is_abstract
from ..memory.region import region_of
from ..memory.sharding import local_tensor
from ..numerics.block_rows import check_blocks
from .float32_state import FLOAT32_STATE, has_float32_state
from .rules import as_integer, is_integer, sums_gradients

FULL_PRECISION = (torch.float32, torch.float64)
HALF_PRECISION = (torch.bfloat16, torch.float16)
EIGHT_BITS = torch.uint8  # what codes are kept in

# what a low-precision weight is kept exact, or nearly so, by; with the dtypes that know it
MASTERS: dict[str | None, tuple[torch.dtype, ...]] = {
    None: HALF_PRECISION,
    "stochastic": HALF_PRECISION,
    "kahan": HALF_PRECISION,
    "split16": (torch.bfloat16,),
    "split8": (torch.bfloat16,),
    "fp32": HALF_PRECISION,
}
STATE_DTYPES: dict[Any, torch.dtype | None] = {
    None: None,
    torch.float32: torch.float32,
    "float32": torch.float32,
    torch.bfloat16: torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "8bit": EIGHT_BITS,
}

# beside a weight, by its master: the tensor's name in the state
MASTER_STATE = {
    "kahan": "kahan_comp",
    "split16": "remainder",
    "split8": "remainder",
    "fp32": "master",
}
# of the state of a rule: what is stored in few bits, and in which code
FIRST_MOMENTS, SECOND_MOMENTS = ("exp_avg", "momentum_buffer"), ("exp_avg_sq", "max_exp_avg_sq")
MOMENTS = (*FIRST_MOMENTS, *SECOND_MOMENTS)


# what records say: enum Dtype, StateKind and Master of csrc/tables.h
DTYPE_WORD = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
STATE_WORD = {torch.float32: 0, torch.bfloat16: 1, EIGHT_BITS: 2}
MASTER_WORD = {master: word for word, master in enumerate(MASTERS)}


def code_name(moment: str) -> str:
    """The state's name for the codes of a moment; under its own name torch's optimizers would take them for numbers."""
    return f"{moment}_code"


def scale_name(moment: str) -> str:
    """The state's name for the scales of a moment of 8 bits."""
    return f"{moment}_scale"


def moment_of(name: str) -> str:
    """The moment to which codes or scales of the state belong; any other name is returned as it is."""
    return name.removesuffix("_code").removesuffix("_scale")


def has_moment(entry: Mapping[str, Any], moment: str) -> bool:
    """Tell whether a moment is in an entry of the state, as numbers or as codes."""
    return any(entry.get(name) is not None for name in (moment, code_name(moment)))


@dataclass(frozen=True)
class Scheme:
    """The storage of one parameter.

    Attributes:
        param: dtype of the parameter.
        master: what keeps its weight exact, one of MASTERS; None for float32 and float64, which are exact as they are.
        state: dtype of moments; EIGHT_BITS are codes with a scale for each block.
        is_direct: the rule works on the tensors as they are stored; else in float32 on what they stand for.
    """

    param: torch.dtype
    master: str | None
    state: torch.dtype
    is_direct: bool

    @property
    def wide(self) -> torch.dtype:
        """The dtype in which the rule computes, and that of sums and averages."""
        return self.param if self.is_direct else torch.float32

    @property
    def draws(self) -> bool:
        """Whether something is rounded by random numbers."""
        if self.is_direct:
            return False
        return self.master == "stochastic" or self.state is not torch.float32

    @property
    def format(self) -> int:
        """`struct Format` of csrc/format.h in one word; 0 for float32 with float32 state."""
        if self.is_direct:
            return 0
        state, master = STATE_WORD[self.state], MASTER_WORD[self.master]
        return DTYPE_WORD[self.param] | state << 2 | master << 4

    @property
    def master_name(self) -> str | None:
        """The state's name for the tensor beside the weight, where there is one."""
        return MASTER_STATE.get(self.master or "")

    def dtypes(self, name: str) -> dict[str, torch.dtype]:
        """The tensors that hold some state of the rule, or the master, by their names in the state."""
        if name in MOMENTS:
            if self.state is not EIGHT_BITS:
                return {name: self.state}
            return {code_name(name): EIGHT_BITS, scale_name(name): EIGHT_BITS}
        masters = {"kahan_comp": self.param, "master": torch.float32}
        if name == "remainder":
            return {name: torch.int16 if self.master == "split16" else torch.int8}
        return {name: masters.get(name, self.wide)}


def state_names(group: dict[str, Any]) -> tuple[str, ...]:
    """The per-element state of a group: of its rule, by torch's names, and what every rule may have."""
    names: tuple[str, ...]
    if group["rule"] == "sgd":
        names = ("momentum_buffer",) if group["momentum"] != 0 else ()
    else:
        names = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
    if group["ema_decay"] is not None:
        names += ("ema",)
    return (*names, "grad_sum") if sums_gradients(group) else names


def stored_names(scheme: Scheme, group: dict[str, Any]) -> dict[str, torch.dtype]:
    """Every tensor of a parameter's per-element state, by its name there, and its dtype."""
    names = state_names(group)
    if scheme.master_name is not None:
        names = (*names, scheme.master_name)
    return {name: dtype for whole in names for name, dtype in scheme.dtypes(whole).items()}


def scheme_of(group: dict[str, Any], param: Tensor, name: str = "") -> Scheme:
    """The scheme of a parameter, from checked settings of its group.

    Args:
        param: the parameter itself, not its local shard.
        name: its own, where it is known.
    """
    dtype = param.dtype
    is_narrow = dtype in (*HALF_PRECISION, torch.float32)
    if group.get("differentiable") or not is_narrow or is_abstract(local_tensor(param)):
        return Scheme(dtype, None, dtype, True)
    state = STATE_DTYPES[group["state_dtype"]] or torch.float32
    if state is not torch.float32 and has_float32_state(group, param, name):
        state = torch.float32
    if dtype is torch.float32:
        return Scheme(dtype, None, state, state is torch.float32)
    return Scheme(dtype, group["master"], state, False)


def check_scheme_names(label: str, group: dict[str, Any]) -> None:
    """Raise ValueError or TypeError, naming the group, for settings that are none."""
    for name, known in (
        ("master", MASTERS),
        ("state_dtype", STATE_DTYPES),
        ("float32_state", FLOAT32_STATE),
    ):
        value = group[name]
        is_predicate = name == "float32_state" and callable(value)
        try:
            is_known = is_predicate or value in known
        except TypeError:
            is_known = False
        if not is_known:
            said = ", ".join(map(repr, known))
            said += " or a function of name and parameter" * (name == "float32_state")
            raise ValueError(f"{label}: unknown {name} {value!r}, expected one of {said}")
    seed = group["seed"]
    if not is_integer(seed):
        raise TypeError(f"{label}: seed must be an int, got {seed!r}")
    if not 0 <= as_integer(seed) < 2**63:
        raise ValueError(f"{label}: invalid seed {seed}, must be >= 0 and below 2**63")
    if group.get("differentiable") and (group["master"] or group["state_dtype"]):
        raise ValueError(f"{label}: differentiable=True goes with neither master nor state_dtype")


def check_scheme(label: str, group: dict[str, Any], param: Tensor, name: str = "") -> None:
    """Raise ValueError or TypeError, naming the parameter, where it cannot be stored as its group says."""
    dtype, master = param.dtype, group["master"]
    if dtype not in (*FULL_PRECISION, *HALF_PRECISION):
        known = ", ".join(map(str, (*FULL_PRECISION, *HALF_PRECISION)))
        raise TypeError(f"{label}: its dtype is {dtype}, known are {known}")
    if dtype in HALF_PRECISION and dtype not in MASTERS[master]:
        fitting = ", ".join(repr(name) for name, dtypes in MASTERS.items() if dtype in dtypes)
        raise ValueError(
            f"{label}: master {master!r} needs bfloat16; for {dtype} there are {fitting}"
        )
    if (master or group["state_dtype"]) and is_abstract(local_tensor(param)):
        raise ValueError(
            f"{label}: master and state_dtype are for parameters with memory of their own, not for a "
            f"{type(param).__name__}"
        )
    if dtype is torch.float64 and STATE_DTYPES[group["state_dtype"]] is not None:
        raise ValueError(
            f"{label}: state_dtype {group['state_dtype']!r} is for parameters of at most 32 bits; a float64 "
            "parameter has float64 state"
        )
    try:
        scheme = scheme_of(group, param, name)
    except TypeError as error:  # the answer of a predicate
        raise TypeError(f"{label}: {error}") from error
    if scheme.state is EIGHT_BITS:
        check_blocks(param, label)
    if scheme.draws:
        region_of(param, label)


# what decides how a group's numbers are stored
STORAGE = ("master", "state_dtype", "float32_state", "seed")


def storage_of(group: dict[str, Any]) -> tuple[Any, ...]:
    """The settings of a group that decide how its numbers are stored."""
    return tuple(as_integer(group[n]) if n == "seed" else group[n] for n in STORAGE)
