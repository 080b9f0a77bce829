"""Checks of state that somebody else wrote: loaded, edited or put there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..groups.param_groups import param_label
from ..groups.rules import as_number
from ..groups.schemes import (
    EIGHT_BITS,
    MASTER_STATE,
    code_name,
    has_moment,
    moment_of,
    scale_name,
    state_names,
)
from ..layout.rows import LARGEST_COUNT
from ..layout.table import COUNTS, STATE_FIELD
from ..memory.presence import has_memory, is_abstract, is_fake, is_uninitialized
from ..memory.sharding import is_sharded, local_tensor
from ..numerics.block_rows import layout_of, scale_shape
from ..numerics.codec import LARGEST_SCALE

# settings with which a group has every kind of state that its rule may have
_MOST_STATE = {
    "amsgrad": True,
    "momentum": 1,
    "ema_decay": 0.0,
    "update_every": 2,
    "update_every_grads": "mean",
}


def check_loaded(state: Mapping[Any, Any], groups: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError or TypeError, naming the parameter, for a state that cannot be that of the parameters."""
    owners: dict[int, tuple[Tensor, str]] = {}
    for index, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            if param not in state:
                continue
            entry, label = state[param], param_label(index, group, position)
            if not isinstance(entry, dict):
                raise TypeError(f"{label}: its state is {entry!r}, expected a dict")
            owner, of_owner = owners.setdefault(id(entry), (param, label))
            if owner is not param:
                raise ValueError(
                    f"{label}: its state is the very dict that is that of {of_owner}; each needs one of its own"
                )
            if entry and not is_uninitialized(param):
                _check_entry(entry, param, group, label)


def _check_entry(
    entry: Mapping[str, Any], param: Tensor, group: dict[str, Any], label: str
) -> None:
    present = [name for name in STATE_FIELD if entry.get(name) is not None]
    if not present and "step" not in entry:
        return
    is_adam = group["rule"] != "sgd"
    lacks = is_adam and not (
        entry.get("step") is not None
        and all(has_moment(entry, name) for name in ("exp_avg", "exp_avg_sq"))
    )
    known = state_names({**group, **_MOST_STATE})
    known = (*known, *map(code_name, known), *map(scale_name, known), *MASTER_STATE.values())
    unknown = [name for name in present if name not in known]
    if unknown or lacks:
        raise ValueError(
            f"{label}: state dict holds {sorted(entry)}, which does not fit rule {group['rule']!r}"
        )
    for name in present:
        value, shape = entry[name], tuple(param.shape)
        if name.endswith("_scale"):
            # by the codes, which may lie in another order of memory than the parameter
            codes = entry.get(code_name(moment_of(name)))
            shape = scale_shape(layout_of(codes if isinstance(codes, Tensor) else param))
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{label}: state dict has {name} of shape {found}, the parameter needs {shape}"
            )
        _check_layout(name, value, param, label)
        # nothing could be copied out of it
        is_lost = (value.is_meta or is_fake(value)) and not param.is_meta
        if is_lost or not (is_abstract(value) or has_memory(value)):
            raise ValueError(f"{label}: its state's {name} has no memory, or less than it needs")
        is_code = name == code_name(moment_of(name))
        if is_code and entry.get(scale_name(moment_of(name))) is None:
            raise ValueError(f"{label}: state dict has {name} without its scales")
        _check_kind(name, value, label)
    for name in COUNTS:
        count = entry.get(name, 0.0)
        try:
            number = as_number(count)
            is_whole = name == "step" or number.is_integer()
            # the count that float32 makes of it, too
            valid = 0 <= number < LARGEST_COUNT and np.float32(number) < LARGEST_COUNT and is_whole
        except (TypeError, ValueError, RuntimeError, OverflowError):  # no number, or several
            valid = False
        if not valid:
            raise ValueError(
                f"{label}: state dict has {name} {count!r}, expected one number >= 0 and below 2**53"
            )


def _check_layout(name: str, value: Any, param: Any, label: str) -> None:
    """Raise ValueError for a tensor that could not be copied into memory of the parameter's own shape.

    Sparse numbers can be: with sparse gradients, torch's SGD has such momentum.
    """
    is_code = name in (code_name(moment_of(name)), scale_name(moment_of(name)))
    known = (torch.strided,) if is_code else (torch.strided, torch.sparse_coo)
    if value.layout not in known:
        raise ValueError(f"{label}: state dict has {name} of layout {value.layout}")
    if not (is_sharded(value) or is_sharded(param)):
        return
    both = is_sharded(value) and is_sharded(param) and param.device_mesh.size() > 1
    is_other = both and value.placements != param.placements
    here, wanted = tuple(local_tensor(value).shape), tuple(local_tensor(param).shape)
    if name.endswith("_scale"):
        wanted = scale_shape(layout_of(local_tensor(param)))
    if is_other or here != wanted:
        raise ValueError(
            f"{label}: state dict has another part of {name} in this process, of shape {here}, than the parameter is, "
            f"of shape {wanted}: load it with set_optimizer_state_dict of torch.distributed.checkpoint"
        )


def _check_kind(name: str, value: Tensor, label: str) -> None:
    """Raise ValueError for numbers of a kind that no scheme stores under this name."""
    if name in (code_name(moment_of(name)), scale_name(moment_of(name))):
        fits = value.dtype is EIGHT_BITS
        # codes are of finite numbers up to twice their scale
        here = local_tensor(value)  # of a shard, which may be empty
        if fits and name.endswith("_scale") and here.numel() and int(here.max()) > LARGEST_SCALE:
            raise ValueError(f"{label}: state dict has {name} above {LARGEST_SCALE}")
    elif name == "remainder":
        fits = value.dtype in (torch.int8, torch.int16)
    else:
        fits = value.is_floating_point()
    if not fits:
        raise ValueError(f"{label}: state dict has {name} of dtype {value.dtype}")


def numbers(counts: dict[Any, Any]) -> dict[Any, float]:
    """Numbers, or tensors of one element, as floats; a device is asked once for all of its tensors."""
    found = {}
    by_device: dict[torch.device, list[Any]] = defaultdict(list)
    for i, count in counts.items():
        if isinstance(count, Tensor) and count.device.type != "cpu":
            by_device[count.device].append(i)
        else:
            found[i] = as_number(count)
    for keys in by_device.values():
        stacked = torch.stack([counts[key].detach().view(()).double() for key in keys])
        found.update(zip(keys, stacked.tolist(), strict=True))
    return found
