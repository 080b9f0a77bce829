"""A table of param groups: what is in each of them, and at which settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, optim

from ..memory.presence import is_uninitialized
from .builders import Group, as_groups, dtypes_of, parameters_of

MOST_IN_FULL = 4  # groups that an optimizer shows as torch does; more are a table
_COLUMNS = ("group", "parameters", "elements", "lr", "weight decay", "role", "precision")
_LEFT = ("group", "role", "precision")


def describe(groups: Iterable[Group] | optim.Optimizer) -> None:
    """Print a table of param groups: parameters, elements, rate, weight decay, role and precision of each.

    Args:
        groups: of any `torch.optim` optimizer, or the optimizer. What a group leaves open is shown as "-": the
            optimizer decides.

    Raises:
        TypeError: these are no param groups.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> sf.describe(sf.split_body_head(model, head="2"))
        group  parameters  elements  role  precision
        0               2        40  body  float32
        1               2         9  head  float32
        all             4        49
    """
    given = groups.param_groups if isinstance(groups, optim.Optimizer) else groups
    print(table_of(given))


def table_of(groups: Iterable[Group]) -> str:
    """Return the table that `describe` prints."""
    groups = as_groups(groups)
    rows = [_row(index, group) for index, group in enumerate(groups)]
    if len(groups) > 1:
        params = {id(p): p for group in groups for p in parameters_of(group)}.values()
        totals = ("all", f"{len(params):,}", f"{sum(map(_elements, params)):,}")
        rows.append((*totals, *[""] * (len(_COLUMNS) - len(totals))))
    # a column that says the same of nobody is none
    shown = [i for i, _ in enumerate(_COLUMNS) if any(row[i] not in ("-", "") for row in rows)]
    lines = [[_COLUMNS[i] for i in shown], *([row[i] for i in shown] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shown))]
    lefts = [_COLUMNS[i] in _LEFT for i in shown]
    return "\n".join(
        "  ".join(
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(line, widths, lefts, strict=True)
        ).rstrip()
        for line in lines
    )


def _row(index: int, group: Group) -> tuple[str, ...]:
    params = parameters_of(group)
    name = f"{index} {group['name']}" if "name" in group else str(index)
    return (
        name,
        f"{len(params):,}",
        f"{sum(map(_elements, params)):,}",
        _number(group.get("lr")),
        _number(group.get("weight_decay")),
        str(group.get("role", "-")),
        _precision(group),
    )


def _elements(param: Tensor) -> int:
    return 0 if is_uninitialized(param) else param.numel()


def _number(value: Any) -> str:
    return "-" if value is None else f"{float(value):.4g}"


def _precision(group: Group) -> str:
    """The dtypes of weights, and how masters and state are stored where that is said."""
    dtypes = " ".join(str(dtype).removeprefix("torch.") for dtype in dtypes_of(group))
    master, state = group.get("master"), group.get("state_dtype")
    parts = [dtypes or "-"]
    parts += [f"master {master}"] if isinstance(master, str) else []
    parts += [f"state {str(state).removeprefix('torch.')}"] if state else []
    return ", ".join(parts)
