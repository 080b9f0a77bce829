"""What a launch may reach, buffer by buffer: derived from the tables that it goes by, not from torch's storages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from torch import Tensor

from stackelberg_fused.backends import Launch
from stackelberg_fused.backends.device_tables import tables_on_device
from stackelberg_fused.groups.schemes import DTYPE_WORD
from stackelberg_fused.layout.statistics import ClipLimits
from stackelberg_fused.layout.table import STATE_FIELD

from .caught_launch import Region

GRAD_BYTES = {word: dtype.itemsize for dtype, word in DTYPE_WORD.items()}
# what each launch reads of the tables
TABLES = {
    "step": ("records", "tiles", "rows", "groups", "sets"),
    "statistics": ("records", "tiles", "rows", "groups"),
    "conclude": (),
    "project": ("records", "rows", "sets", "pieces"),
}
LAUNCHES = tuple(TABLES)


def regions_of(what: str, launch: Launch, limits: ClipLimits | None = None) -> tuple[Region, ...]:
    """The memory that a launch may reach; regions do not overlap.

    Args:
        what: one of LAUNCHES.
        launch: as backends get it, with tables on the host.
        limits: of a launch of statistics.
    """
    tables = tables_on_device(launch.table, launch.span)
    read, written = _tensors(what, launch, limits)
    found = [
        *(_of_tensor(name, tables[name], False) for name in TABLES[what] if name in tables),
        *(_of_tensor(name, tensor, False) for name, tensor in read.items()),
        *(_of_tensor(name, tensor, True) for name, tensor in written.items()),
    ]
    if what == "step":
        found += _rates(launch)
    if what != "conclude":
        for slot in _slots(what, launch):
            found += _of_slot(what, launch, int(slot))
    return tuple(region for region in found if region.nbytes)


def _of_tensor(name: str, tensor: Tensor, writable: bool) -> Region:
    assert tensor.is_contiguous(), name
    return Region(name, tensor.data_ptr(), tensor.numel() * tensor.element_size(), writable)


def _tensors(
    what: str, launch: Launch, limits: ClipLimits | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Buffers of the whole launch, those that are read and those that are also written."""
    counts, joint, scaling, statistics = (
        launch.table.counts,
        launch.joint_sets,
        launch.scaling,
        launch.statistics,
    )
    read: dict[str, Tensor | None] = {}
    written: dict[str, Tensor | None] = {}
    if scaling is not None:
        if what in ("step", "statistics"):
            read["grad_scale"] = scaling.grad_scale
        if what in ("step", "project"):
            read["found_inf"] = scaling.found_inf
        else:
            written["found_inf"] = scaling.sought
    if what == "step":
        if statistics is not None:
            read["factors"] = statistics.factors
        if counts is not None:
            names = "steps", "ready", "waited", "arrived"
            written |= {name: getattr(counts, name) for name in names}
        if joint is not None:
            names = "set_sums", "set_digits", "set_factors", "set_tiles_done", "moved"
            written |= dict(zip(names, joint.results, strict=True))
    elif what == "project":
        assert joint is not None
        read |= {"set_factors": joint.factors, "moved": joint.moved}
    else:
        assert statistics is not None
        assert limits is not None
        written |= {"statistics": statistics.buffer, "digits": statistics.digits}
        if what == "statistics":
            written["sums"] = statistics.sums
            read["limits"] = statistics.limits_on_device(limits)
            read["waited"] = None if counts is None else counts.waited
    return _present(read), _present(written)


def _present(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _slots(what: str, launch: Launch) -> Iterable[int]:
    """The slots whose elements the launch may touch."""
    span = launch.span
    if what != "project":
        return span.indices
    joint = launch.needed_joint_sets
    first, count = joint.piece_range(span.first_slot, span.last_slot)
    return np.unique(joint.pieces["record"][first : first + count])


def _rates(launch: Launch) -> Iterator[Region]:
    """Rates that are tensors, of the groups that move."""
    table = launch.table
    if table.counts is None:
        return
    scalars = table.hyperparameters.scalars_for(table.device)
    for group in np.unique(table.rows.slot_group[launch.span.here]):
        address, is_double = (int(scalars[group][n]) for n in ("lr_address", "lr_is_double"))
        if address:
            yield Region(f"lr[{group}]", address, 8 if is_double else 4, False)


def _of_slot(what: str, launch: Launch, index: int) -> Iterator[Region]:
    """The buffers of one parameter by its record, each as long as the parameter is."""
    table = launch.table
    record, slot = table.records[index], table.slots[index]
    numel = int(record["numel"])
    param = numel * slot.scheme.param.itemsize
    grad = numel * GRAD_BYTES[int(record["grad_dtype"])]
    state = {}
    for name in STATE_FIELD.keys() & table.state_tensors[index].keys():
        like = slot.state_like(name)
        state[STATE_FIELD[name]] = like.numel() * like.element_size()
    reached: dict[str, tuple[int, bool]] = {}  # bytes, and whether they are written
    if what == "statistics":
        reached["grad"] = grad, False
        if "grad_sum" in state:
            reached["grad_sum"] = state["grad_sum"], False
    elif what == "project":
        reached["param"] = param, True
        if "ema" in state:
            reached["ema"] = state["ema"], True
    else:
        reached["param"] = param, True
        reached["grad"] = grad, launch.zero_grads
        reached |= {field: (nbytes, True) for field, nbytes in state.items()}
    for field, (nbytes, writable) in reached.items():
        if record[field]:
            yield Region(f"{field}[{index}]", int(record[field]), nbytes, writable)
