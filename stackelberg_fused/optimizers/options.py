"""The keyword arguments of the three optimizers, each spelled once: name, type and, after the type, default.

A new one is a line below and one in the docstring of `StackelbergAdam`. What an option is of decides where it goes:
those of a group into `defaults`, from which groups that do not say otherwise take it; those of the whole optimizer to
its constructor.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

from torch import Tensor
from typing_extensions import Required, TypedDict

from ..backends import Backend
from ..groups.constraints import Constraint
from ..groups.option_types import (
    BackendName,
    Float32State,
    Grads,
    Master,
    Mode,
    Release,
    Role,
    RuleName,
    StateDtype,
    UpdateEveryGrads,
)

Init = TypeVar("Init", bound=Callable[..., None])


class OptimizerOptions(TypedDict, total=False):
    """Of an optimizer as a whole."""

    head_lr_ratio: Annotated[float, 10.0]
    backend: Annotated[BackendName | Backend, "auto"]
    flatten: Annotated[bool, True]
    max_grad_norm: Annotated[float | dict[Role, float] | None, None]
    grads: Annotated[Grads, "gather"]
    mode: Annotated[Mode, "simultaneous"]
    release: Annotated[Release, None]


class GroupOptions(TypedDict, total=False):
    """Of any group."""

    maximize: Annotated[bool, False]
    foreach: Annotated[bool | None, None]
    differentiable: Annotated[bool, False]
    fused: Annotated[bool | None, None]
    update_every_grads: Annotated[UpdateEveryGrads, "latest"]
    seed: Annotated[int, 0]


class ByRoleOptions(TypedDict, total=False):
    """Of any group; the constructor takes them by role too, which a group dict does not: see `ParamGroup`."""

    ema_decay: Annotated[float | dict[Role, float] | None, None]
    update_every: Annotated[int | dict[Role, int], 1]
    constraint: Annotated[Constraint | dict[Role, Constraint] | None, None]
    master: Annotated[Master | dict[Role, Master], None]
    state_dtype: Annotated[StateDtype | dict[Role, StateDtype], None]
    float32_state: Annotated[Float32State | dict[Role, Float32State], "vectors"]


class AdamFamilyGroupOptions(GroupOptions, total=False):
    """Of groups of Adam and AdamW."""

    capturable: Annotated[bool, False]


class AdamGroupOptions(AdamFamilyGroupOptions, total=False):
    """Of groups that StackelbergAdam alone makes."""

    decoupled_weight_decay: Annotated[bool, False]


class AdamWGroupOptions(AdamFamilyGroupOptions, total=False):
    """Of groups that StackelbergAdamW alone makes."""

    cautious: Annotated[bool, False]


class AdamOptions(AdamGroupOptions, ByRoleOptions, OptimizerOptions, total=False):
    """Of StackelbergAdam."""


class AdamWOptions(AdamWGroupOptions, ByRoleOptions, OptimizerOptions, total=False):
    """Of StackelbergAdamW."""


class SGDOptions(GroupOptions, ByRoleOptions, OptimizerOptions, total=False):
    """Of StackelbergSGD."""


class ParamGroup(AdamGroupOptions, AdamWGroupOptions, total=False):
    """A group dict: annotate a list of them with it, and editors know their keys. Any dict with "params" will do."""

    params: Required[Tensor | Iterable[Tensor] | Iterable[tuple[str, Tensor]]]
    role: Role
    rule: RuleName
    lr: float | Tensor
    weight_decay: float | Tensor
    betas: tuple[float | Tensor, float | Tensor]
    eps: float
    amsgrad: bool
    momentum: float
    dampening: float
    nesterov: bool
    ema_decay: float | None
    update_every: int
    constraint: Constraint | None
    master: Master
    state_dtype: StateDtype
    float32_state: Float32State


# tensors, (name, tensor) pairs, or group dicts; Any, since of a list of dicts with unlike values mypy knows no more
# than that it holds objects
Params: TypeAlias = Iterable[ParamGroup] | Iterable[Any]


def takes(options: type) -> Callable[[Init], Init]:
    """Give a constructor with `**options: Unpack[...]` the signature that spells them out.

    Type checkers and editors read the annotation; this is for `inspect.signature`, by which scripts find out what an
    optimizer takes.
    """

    def spelled_out(init: Init) -> Init:
        given = inspect.signature(init)
        named = [p for p in given.parameters.values() if p.kind is not p.VAR_KEYWORD]
        keywords = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for name, (annotation, default) in _spelled(options).items()
        ]
        init.__signature__ = given.replace(parameters=[*named, *keywords])  # type: ignore[attr-defined]
        return init

    return spelled_out


def sorted_out(
    owner: str, given: Mapping[str, Any], options: type
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Complete keyword arguments with defaults; return those of the optimizer, and those of groups.

    Args:
        owner: the class that was called.
        given: the keyword arguments.
        options: those that the class takes.

    Raises:
        TypeError: names one that it does not take.
    """
    known = _spelled(options)
    for name in given:
        if name not in known:
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}")
    complete = {name: given.get(name, default) for name, (_, default) in known.items()}
    of_optimizer = OptimizerOptions.__annotations__
    return (
        {name: value for name, value in complete.items() if name in of_optimizer},
        {name: value for name, value in complete.items() if name not in of_optimizer},
    )


@cache
def _spelled(options: type) -> dict[str, tuple[Any, Any]]:
    """Return type and default by name."""
    hints = get_type_hints(options, include_extras=True)
    return {name: (hint.__origin__, hint.__metadata__[0]) for name, hint in hints.items()}
