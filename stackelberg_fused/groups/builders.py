"""Param groups from patterns of names, and what is done with groups of any origin.

Groups are plain dicts, which every `torch.optim` optimizer takes: "params" as (name, parameter) pairs, and settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from .model_parameters import ModelParameter, model_parameters

Group = dict[str, Any]
Settings = Mapping[str, Any]
CONTENT = ("params", "param_names")  # of a group: what is no setting


def groups_by_pattern(
    model: nn.Module, patterns: Mapping[str, Settings], default: Settings | None = None
) -> list[Group]:
    """Param groups by the names of parameters.

    Args:
        model: each of its parameters is in one group, tied weights too. It may be wrapped.
        patterns: settings of a group by regular expression, which is searched in the name (`re.search`): `"norm"`
            matches anywhere, `r"^embed\\."` at the beginning, `r"\\.bias$"` at the end. Names are those of the model
            inside of wrappers (DDP, `torch.compile`, FSDP).
        default: settings of parameters that no pattern matches; None: of the optimizer.

    Returns:
        Group dicts in the order of the patterns, then that of the others, if there are any.

    Raises:
        ValueError: a pattern matches no parameter, or two match the same, or it is no regular expression.
        TypeError: patterns or settings are no dict, or settings hold "params".

    Example:
        >>> model = nn.ModuleDict({"embed": nn.Embedding(10, 8), "lm_head": nn.Linear(8, 10)})
        >>> settings = {"^embed": {"lr": 0.01}, "bias$": {"weight_decay": 0.0}}
        >>> groups = sf.groups_by_pattern(model, settings, default={"lr": 0.001})
        >>> [(group["params"][0][0], group.get("lr")) for group in groups]
        [('embed.weight', 0.01), ('lm_head.bias', None), ('lm_head.weight', 0.001)]
    """
    if not isinstance(patterns, Mapping):
        raise TypeError(f"patterns must be a dict of settings, got {type(patterns).__name__}")
    params = model_parameters(model)
    compiled = {pattern: _compiled(pattern, of) for pattern, of in patterns.items()}
    check_settings("default", default or {})
    found: dict[str | None, list[ModelParameter]] = {pattern: [] for pattern in patterns}
    found[None] = []
    for one in params:
        matching = [p for p, regex in compiled.items() if any(map(regex.search, one.names))]
        if len(matching) > 1:
            listing = " and ".join(map(repr, matching))
            raise ValueError(
                f"parameter {_named(one)} is matched by {listing}: it can be in one group"
            )
        found[matching[0] if matching else None].append(one)
    for pattern in patterns:
        if not found[pattern]:
            examples = ", ".join(repr(one.names[0]) for one in params[:4])
            raise ValueError(
                f"the pattern {pattern!r} matches no parameter. The first of {len(params)} names: {examples}"
            )
    groups = [group_of(found[pattern], of) for pattern, of in patterns.items()]
    rest = found[None]
    return [*groups, *([group_of(rest, default or {})] if rest else [])]


def group_of(params: Iterable[ModelParameter], settings: Settings) -> Group:
    """Return a group of named parameters."""
    return {"params": [(one.name, one.param) for one in params], **settings}


def _named(one: ModelParameter) -> str:
    return " = ".join(map(repr, one.names))


def _compiled(pattern: str, settings: Settings) -> re.Pattern[str]:
    check_settings(f"pattern {pattern!r}", settings)
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


def check_settings(what: str, settings: Settings) -> None:
    """Raise TypeError unless these are settings of a group, without its parameters."""
    if not isinstance(settings, Mapping):
        raise TypeError(f"{what}: settings must be a dict, got {type(settings).__name__}")
    if "params" in settings:
        raise TypeError(f"{what}: settings of a group, not its 'params': those are what matches")


def check_number(name: str, value: Any) -> None:
    """Raise TypeError unless this is a number, or a tensor of one element."""
    is_one = isinstance(value, Tensor) and value.numel() == 1
    if isinstance(value, bool) or not (is_one or isinstance(value, Real)):
        raise TypeError(f"{name} must be a number, got {value!r}")


def check_at_least_zero(name: str, value: Any) -> None:
    """Raise TypeError unless this is a number, and ValueError unless it is >= 0."""
    check_number(name, value)
    if not value >= 0.0:
        raise ValueError(f"{name} must be >= 0, got {value!r}")


def as_groups(groups: Any) -> list[Group]:
    """Return param groups as a list, or raise TypeError where these are none."""
    if isinstance(groups, (Mapping, str, Tensor)) or not isinstance(groups, Iterable):
        raise TypeError(f"param groups are dicts in a list, got {type(groups).__name__}")
    found = list(groups)
    for index, group in enumerate(found):
        if not isinstance(group, Mapping):
            raise TypeError(f"param group {index} must be a dict, got {type(group).__name__}")
        if "params" not in group:
            raise TypeError(f"param group {index} has no 'params'")
    return found


def merge_equal(groups: Iterable[Group]) -> list[Group]:
    """Join groups with the same settings, in the place of the first of them.

    Args:
        groups: as an optimizer takes them, and as `param_groups` has them. A "name" is no setting: the names of
            joined groups are joined too.

    Returns:
        New groups; those that were given keep their parameters and settings.

    Raises:
        ValueError: groups with names of their parameters and without.
        TypeError: these are no param groups.

    Example:
        >>> layers = [nn.Linear(4, 4) for _ in range(3)]
        >>> rates = (0.1, 0.2, 0.1)
        >>> groups = [{"params": m.parameters(), "lr": lr} for m, lr in zip(layers, rates)]
        >>> [(group["lr"], len(group["params"])) for group in sf.merge_equal(groups)]
        [(0.1, 4), (0.2, 2)]
    """
    merged: list[Group] = []
    for group in as_groups(groups):
        own = {**group, "params": members_of(group)}
        if "param_names" in own:
            own["param_names"] = list(own["param_names"])
        for other in merged:
            if _is_equal(_settings_of(own), _settings_of(other)):
                _join(other, own)
                break
        else:
            merged.append(own)
    return merged


def _settings_of(group: Group) -> Group:
    return {k: v for k, v in group.items() if k not in (*CONTENT, "name")}


def _is_equal(ours: Any, theirs: Any) -> bool:
    """Compare settings; a tensor, as a rate may be, is equal to itself alone: it is changed in place."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(_is_equal(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, Tensor) or isinstance(theirs, Tensor):
        return ours is theirs
    return type(ours) is type(theirs) and bool(ours == theirs)


def _join(first: Group, other: Group) -> None:
    if _is_named(first) != _is_named(other):
        raise ValueError("some groups name their parameters, and others do not")
    for key in CONTENT:
        if key in first:
            first[key] = [*first[key], *other[key]]
    names = [group["name"] for group in (first, other) if "name" in group]
    if names:
        first["name"] = ", ".join(map(str, names))


def _is_named(group: Group) -> bool:
    return "param_names" in group or any(isinstance(p, tuple) for p in group["params"])


def parameters_of(group: Group) -> list[Tensor]:
    """Return the parameters of a group, which may have them by name, or one alone."""
    return [p[1] if isinstance(p, tuple) else p for p in members_of(group)]


def members_of(group: Group) -> list[Any]:
    """Return the parameters of a group, with their names where it has them by name.

    An iterator, as `module.parameters()` is one, would be empty the next time: the group gets a list in its place.
    """
    params = group["params"]
    if isinstance(params, Tensor):
        return [params]
    if not isinstance(params, (list, tuple)):
        params = group["params"] = list(params)
    return list(params)


def dtypes_of(group: Group) -> list[torch.dtype]:
    """Return the dtypes of the parameters of a group."""
    return list(dict.fromkeys(p.dtype for p in parameters_of(group)))
