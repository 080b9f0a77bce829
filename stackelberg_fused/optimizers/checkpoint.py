"""State dicts: packing for saving; completing, checking and keeping exact values on loading."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.placement import collect_slots
from ..engine.state_checks import check_loaded, numbers
from ..groups.constraints import Constraint, as_constraint
from ..groups.hyperparameters import turn_of
from ..groups.param_groups import (
    BY_ROLE,
    check_hyperparameters,
    complete_group,
    plain_integers,
)
from ..layout.joint_set_checks import check_joint_sets
from ..layout.table import COUNTS, STATE_FIELD

# How torch executes a step, not what it computes: a loaded state dict does not change them.
# Nor does it change how numbers are stored: those of another scheme are converted.
_EXECUTION = (
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "master",
    "state_dtype",
    "float32_state",
)
_OURS = (*BY_ROLE, "update_every_grads", "seed", "cautious")


@dataclass(frozen=True)
class _Exact:
    """A value that torch would cast to its parameter's dtype on loading, or an array, of which it would fail to."""

    value: Any


def complete_state(
    loaded: dict[str, Any], groups: list[dict[str, Any]], defaults: dict[str, Any]
) -> dict[str, Any]:
    """A loaded state, checked and with copies of its entries.

    Args:
        loaded: "state" by parameter, and "param_groups".
        groups: of the optimizer that loads it.

    Raises:
        ValueError, TypeError: names the group or parameter that it does not fit.
    """
    merged = _merged(loaded["param_groups"], groups, defaults)
    copies = {
        key: {n: v.value if isinstance(v, _Exact) else v for n, v in entry.items()}
        if isinstance(entry, dict)
        else (entry.value if isinstance(entry, _Exact) else entry)
        for key, entry in loaded["state"].items()
    }
    check_loaded(copies, merged)
    check_joint_sets(collect_slots(merged), merged)
    return {**loaded, "param_groups": merged, "state": defaultdict(dict, copies)}


def with_exact_values(loaded: dict[str, Any]) -> dict[str, Any]:
    """A state dict of which torch casts nothing that we know: a state may have more bits than its parameter, or codes.

    Counts of steps waited become numbers; other tensors are wrapped until `complete_state`. Of a "step" torch would
    leave the value as it is, but it looks through all groups for each.
    """
    if "state" not in loaded:
        return loaded  # torch says so
    state = loaded["state"]
    found = {k: e["waited"] for k, e in state.items() if isinstance(e, dict) and "waited" in e}
    try:
        counts = numbers(found)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        counts = {}  # to be refused by name

    def exact(key: Any, name: str, value: Any) -> Any:
        if name == "waited" and key in counts:
            return counts[key]
        is_ours = isinstance(value, Tensor) and (name in COUNTS or name in STATE_FIELD)
        return _Exact(value) if is_ours or isinstance(value, np.ndarray) else value

    entries = {
        key: {n: exact(key, n, v) for n, v in entry.items()}
        if isinstance(entry, dict)
        else exact(key, "", entry)
        for key, entry in state.items()
    }
    return {**loaded, "state": entries}


def with_rounds_of_now(
    packed: dict[str, Any], rounds: list[tuple[int, str] | None]
) -> dict[str, Any]:
    """A state dict in which groups whose turns were edited since their last step begin a round, as at their next step.

    Args:
        rounds: of each group what its counts are of, see `turn_of`.
    """
    state = dict(packed["state"])
    for group, known in zip(packed["param_groups"], rounds, strict=True):
        if known is None or known == turn_of(group):
            continue
        for key in group["params"]:
            entry = state.get(key)
            if isinstance(entry, dict) and "waited" in entry:
                rest = {name: value for name, value in entry.items() if name != "grad_sum"}
                state[key] = {**rest, "waited": torch.zeros_like(torch.as_tensor(entry["waited"]))}
    return {**packed, "state": state}


def packed_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups as a state dict holds them: of plain values."""
    return [
        {
            **{n: v.packed() if isinstance(v, Constraint) else v for n, v in group.items()},
            **plain_integers(group),
            # an optimizer keeps its own when it loads; a function is no plain value
            **({"float32_state": "function"} if callable(group.get("float32_state")) else {}),
        }
        for group in groups
    ]


def _merged(
    loaded: list[dict[str, Any]], groups: list[dict[str, Any]], defaults: dict[str, Any]
) -> list[dict[str, Any]]:
    """Loaded groups, completed with what a dict from torch's namesake does not know."""
    merged: list[dict[str, Any]] = []
    rates: set[int] = set()
    for index, (new, old) in enumerate(zip(loaded, groups, strict=True)):
        own = {name: old[name] for name in ("role", "rule", *_EXECUTION) if name in old}
        # what torch's namesake knows nothing of
        own.update({n: old[n] for n in _OURS if n in old and n not in new})
        # Adam's and AdamW's dicts of torch tell themselves apart by this; what AdamW loads, it goes on with as AdamW
        is_torchs = "rule" not in new and "decoupled_weight_decay" in new
        if "rule" in new or (is_torchs and old["rule"] == "adam"):
            own.pop("rule")
        elif is_torchs and old["rule"] == "adamw":
            own["decoupled_weight_decay"] = True
        if "role" in new:
            own.pop("role")
        group = complete_group({**new, **own}, defaults, 1.0, index)
        if "cautious" in own and group["rule"] != "adamw":
            group["cautious"] = False  # the dict made it a group of another rule
        check_hyperparameters(group, index)
        group["constraint"] = as_constraint(group["constraint"])
        lr = group["lr"]
        if isinstance(lr, Tensor) and id(lr) in rates and not lr.requires_grad:
            group["lr"] = lr = lr.clone()  # schedulers fill it in place
        rates.add(id(lr))
        merged.append(group)
    return merged
