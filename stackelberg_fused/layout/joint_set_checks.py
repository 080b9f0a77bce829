"""Joint sets that the parameters of a group cannot share."""

from __future__ import annotations

from typing import Any

from ..groups.constraints import JointSet, L2Ball, joint_set
from ..groups.param_groups import group_label
from ..memory.flattened import is_cut, original_shapes
from ..memory.overlap import SHARED, overlaps_itself
from ..memory.sharding import is_sharded, place_in_mesh, ranks_of, refuse_uncommon
from .slot import Slot


def check_joint_sets(slots_by_kind: dict[Any, list[Any]], groups: list[dict[str, Any]]) -> None:
    """Raise ValueError or TypeError for a group whose set its parameters cannot share; names the group or parameter."""
    kinds: dict[int, Any] = {}
    for kind, slots in slots_by_kind.items():
        for slot in slots:
            constraint = joint_set(groups[slot.group])
            if constraint is None:
                continue
            _refuse_pieces(slot, constraint)
            if not kind.has_memory:
                raise TypeError(
                    f"{slot.name}: {constraint} needs the elements of all of its group, a {type(slot.local).__name__} "
                    "has no memory of its own"
                )
            if overlaps_itself(slot.local):
                raise ValueError(f"{slot.name}: {SHARED}")  # a ball scales frozen ones too
            if slot.scheme.master not in (None, "stochastic"):
                raise ValueError(
                    f"{slot.name}: {constraint} does not know master {slot.scheme.master!r}: projected are parameters "
                    "as they are, for which there are None and 'stochastic'"
                )
            if kinds.setdefault(slot.group, kind) != kind:
                label = group_label(slot.group, groups[slot.group])
                raise ValueError(
                    f"{label}: {constraint} needs parameters of one device and dtype, got "
                    f"{_said(kinds[slot.group])} and {_said(kind)}"
                )
    _refuse_meshes([slot for slots in slots_by_kind.values() for slot in slots], groups)


def _refuse_pieces(slot: Slot, constraint: JointSet) -> None:
    """Raise ValueError, on all ranks alike, where they have pieces of a parameter from which the set cannot be told."""
    param: Any = slot.param
    shapes = original_shapes(param)
    is_whole = shapes is None or (
        not is_cut(param) and (isinstance(constraint, L2Ball) or shapes == (tuple(param.shape),))
    )
    if not is_whole:
        raise ValueError(
            f"{slot.name}: {constraint} would be around the part that FullyShardedDataParallel has left on each "
            "rank: shard with fully_shard (FSDP2)"
        )
    if not is_sharded(param):
        return
    if any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"{slot.name}: {constraint} needs elements that are summed over ranks, the parameter has placements "
            f"{param.placements}"
        )
    if isinstance(constraint, L2Ball):
        return
    if _cuts_rows(param):
        raise ValueError(
            f"{slot.name}: {constraint} is for each row along the last dimension, and {param.placements} cuts "
            "the rows: shard another dimension"
        )


def _cuts_rows(param: Any) -> bool:
    """Tell whether several ranks hold parts of one row of a DTensor."""
    return any(
        not placement.is_replicate()
        and placement.dim % param.dim() == param.dim() - 1
        and param.device_mesh.size(dimension) > 1
        for dimension, placement in enumerate(param.placements)
    )


def _refuse_meshes(slots: list[Slot], groups: list[dict[str, Any]]) -> None:
    """Raise ValueError for a ball over meshes of which some rank would not learn all sums, or of a move."""
    places: dict[int, list[Any]] = {}
    for slot in slots:
        if isinstance(joint_set(groups[slot.group]), L2Ball):
            places.setdefault(slot.group, []).append(place_in_mesh(slot.param)[0])
    for index, of_group in places.items():
        found = [mesh for mesh in of_group if mesh is not None]
        label = f"{group_label(index, groups[index])}: {joint_set(groups[index])}"
        refuse_uncommon(
            of_group,
            what=f"{label} is of parameters",
            consequence="scale by another factor",
            each="a group, and a ball, of its own",
        )
        if not found:
            continue
        ranks = [set(ranks_of(mesh)) for mesh in found]
        widest = max(ranks, key=len)
        other = next((i for i, of in enumerate(ranks) if not of <= widest), None)
        if other is not None:
            raise ValueError(
                f"{label} is over {found[ranks.index(widest)]} and {found[other]}, neither of which has all ranks of "
                "the other: give each a group, and a ball, of its own"
            )


def _said(kind: Any) -> str:
    return f"{kind.dtype} on {kind.device}"
