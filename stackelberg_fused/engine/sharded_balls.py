"""Balls of whose elements each rank holds some: exact sums of squares, added up over ranks before the projection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends.interrupts import HeldSignals
from ..groups.constraints import L2Ball, joint_set
from ..layout.joint_sets import JointSets, ShardedBall
from ..layout.scaling import Scaling, move
from ..layout.statistics import ClipLimits
from ..memory.sharding import is_in, is_sharded, sum_over_ranks
from ..native.tensor_abi import increment_versions
from ..numerics.exact_sum import WORDS, carried, sum_of_squares
from ..numerics.projection import toward_zero
from .across_rebuilds import AcrossRebuilds
from .device_counting import refuse_in_capture
from .launch_unit import LaunchUnit, Staged
from .rank_agreement import refuse_different_ranks_once

_AT_ONCE = 2**20  # elements of a rank that launches nothing, which are read and scaled in PyTorch


class _OfUnit:
    """The balls of one launch unit that are stepped together.

    Attributes:
        index: of the unit.
        joint: the joint sets of its table.
        balls: some of `joint.sharded`.
        sets: int64 [n]: the sets of these balls.
        row_of_set: int64 [n]: which ball each of them is of, among those of all units.
        members: int64 [m]: the slots of these balls.
        ball_of_member: int64 [m]: which of `balls` each of them is of.
    """

    def __init__(self, index: int, joint: JointSets, balls: list[ShardedBall], first: int) -> None:
        self.index, self.joint, self.balls = index, joint, balls
        self._device = joint.digits.device
        self.sets = self.indices(s for ball in balls for s in ball.sets)
        self.row_of_set = self.indices(first + i for i, ball in enumerate(balls) for _ in ball.sets)
        self.members = self.indices(m for ball in balls for m in ball.members.tolist())
        self.ball_of_member = self.indices(i for i, ball in enumerate(balls) for _ in ball.members)

    def counted(self, mesh: Any) -> Tensor:
        """int64: which of `sets` are laid out over a mesh and count on this rank."""
        places = [p for ball in self.balls for p in zip(ball.meshes, ball.counts, strict=True)]
        return self.indices(i for i, place in enumerate(places) if place == (mesh, True))

    def indices(self, found: Iterable[int]) -> Tensor:
        """int64, where the unit's tensors are."""
        return torch.tensor([*found], dtype=torch.int64, device=self._device)


class _OfMesh:
    """How the sums over the ranks of one mesh begin on this one.

    Attributes:
        mesh: None for plain tensors, which have no other ranks.
        parts: for each unit, int64: which of its sets count here, and the rows of their balls in the sum.
        has_shards: int64 [balls]: whether a ball has parameters that are laid out over the mesh.
    """

    def __init__(self, mesh: Any, units: Sequence[_OfUnit]) -> None:
        self.mesh = mesh
        first = units[0]
        which = [of.counted(mesh) for of in units]
        rows = [of.row_of_set[found] for of, found in zip(units, which, strict=True)]
        self.parts = [
            (found, r.to(first.sets.device)) for found, r in zip(which, rows, strict=True)
        ]
        balls = [ball for of in units for ball in of.balls]
        self.has_shards = first.indices(mesh in ball.meshes for ball in balls)


class _OfRole:
    """The balls of a role, or of all, and how their sums are made.

    Attributes:
        units: those that have such balls.
        num_balls: theirs together.
        meshes: in the order in which all ranks go through them.
    """

    def __init__(self, units: Sequence[LaunchUnit], role: str | None) -> None:
        self.units: list[_OfUnit] = []
        self.num_balls = 0
        for index, unit in enumerate(units):
            joint, span = unit.table.joint_sets, unit.table.spans[role]
            balls = [] if joint is None else joint.sharded
            balls = [b for b in balls if span.first_slot <= b.members[0] < span.last_slot]
            if joint is not None and balls:
                self.units.append(_OfUnit(index, joint, balls, self.num_balls))
                self.num_balls += len(balls)
        found = dict.fromkeys(m for of in self.units for ball in of.balls for m in ball.meshes)
        here = [mesh for mesh in found if mesh is None or is_in(mesh)]
        self.meshes = [_OfMesh(mesh, self.units) for mesh in here]


class ShardedBalls:
    """The balls of an optimizer whose parameters lie on several ranks.

    Between the launch of an update and that of the projection, one all-reduce for each mesh adds up what the former
    leaves: integers, so that the factor has the same bits on every rank, and however the parameters are sharded. Copies
    of a shard count once. A ball is projected onto if one of its elements moved on any rank.

    Args:
        units: all of the optimizer's.
        groups: its param groups.
        across_rebuilds: remembers whether ranks agreed.
    """

    def __init__(
        self,
        units: Sequence[LaunchUnit],
        groups: list[dict[str, Any]],
        across_rebuilds: AcrossRebuilds,
    ) -> None:
        self._units, self._groups, self._across_rebuilds = units, groups, across_rebuilds
        self._joint_sets = [unit.table.joint_sets for unit in units]
        self._of_role: dict[str | None, _OfRole] = {}

    @classmethod
    def of(
        cls,
        units: Sequence[LaunchUnit],
        groups: list[dict[str, Any]],
        across_rebuilds: AcrossRebuilds,
        before: ShardedBalls | None,
    ) -> ShardedBalls | None:
        """Those of some units, `before` if they are still these; None where ranks share no ball."""
        found = [unit.table.joint_sets for unit in units]
        if not any(joint is not None and joint.sharded for joint in found):
            return None
        if before is not None and found == before._joint_sets:
            return before
        return cls(units, groups, across_rebuilds)

    def prepare(self, limits: ClipLimits | None, scaling: Scaling | None, role: str | None) -> None:
        """Have ranks agree on what has to be the same on all, and make room, before anything is modified.

        Args:
            scaling: `found_inf` becomes that of all ranks: a step is skipped by all or by none.

        Raises:
            ValueError, RuntimeError: see `refuse_different_ranks`; or a CUDA graph is captured before a step of this
                role.
        """
        refuse_different_ranks_once(self._groups, {"max_grad_norm": limits}, self._across_rebuilds)
        of_role = self._prepared(role)
        if scaling is None or scaling.search is not None:
            return
        found = scaling.found_inf  # None on a rank without gradients
        total = torch.zeros(()) if found is None else found.view(()).ne(0).float()
        for mesh in (of.mesh for of in of_role.meshes if of.mesh is not None):
            total = move(total, torch.device(mesh.device_type))
            sum_over_ranks(mesh, total)
        scaling.found_inf = total if found is None else move(total, found.device)

    def _prepared(self, role: str | None) -> _OfRole:
        """Return the balls of a role, whose index tensors are made once."""
        if role not in self._of_role:
            for unit in self._units:
                refuse_in_capture(unit.table, "the index of its sharded balls")
            self._of_role[role] = _OfRole(self._units, role)
        return self._of_role[role]

    @torch.no_grad()
    def launch(self, staged: Sequence[Staged | None], role: str | None) -> int:
        """Make the launches of a step, whose number is returned, as `Engine.launch`.

        Every rank has to call this, whether or not it has a gradient.
        """
        of_role = self._prepared(role)
        is_skipped = any(unit.skipped for unit in self._units)  # on all ranks
        waiting = {} if is_skipped else {of.index: staged[of.index] for of in of_role.units}
        launches = 0
        with HeldSignals():
            for index, (unit, ready) in enumerate(zip(self._units, staged, strict=True)):
                if ready is not None:
                    launches += unit.update(ready) if index in waiting else unit.launch(ready)
            if not waiting:
                return launches
            self._conclude(of_role, waiting)
            for of in of_role.units:
                unit, ready = self._units[of.index], waiting[of.index]
                if ready is None:
                    _project(unit, of)
                else:
                    launches += unit.project(ready)
        return launches

    def _conclude(self, of_role: _OfRole, staged: dict[int, Staged | None]) -> None:
        """Add up the sums of all ranks, and write the factors that follow from them."""
        found = [_found_here(self._units[of.index], of, staged[of.index]) for of in of_role.units]
        device = found[0][0].device
        moved = torch.cat([move(moves, device) for _, moves in found])
        total = torch.zeros((of_role.num_balls, WORDS + 1), dtype=torch.int64, device=device)
        for of_mesh in of_role.meshes:
            here = torch.zeros_like(total)
            for (which, rows), (digits, _) in zip(of_mesh.parts, found, strict=True):
                here[:, :WORDS].index_add_(0, rows, move(digits[which], device))
            here[:, WORDS] = moved * of_mesh.has_shards
            if of_mesh.mesh is not None:
                # parameters that are offloaded to the host may have ranks that reduce on the GPU alone
                reduced = move(here, torch.device(of_mesh.mesh.device_type))
                sum_over_ranks(of_mesh.mesh, reduced)
                here = move(reduced, device)
            total += here
        for of in of_role.units:
            of_sets = move(total, of.sets.device)[of.row_of_set]
            of.joint.conclude_sharded(of.sets, of_sets[:, :WORDS], of_sets[:, WORDS] > 0)


def has_sharded_ball(groups: Iterable[dict[str, Any]]) -> bool:
    """Tell whether ranks share a ball of these param groups."""
    return any(
        isinstance(joint_set(group), L2Ball) and any(map(is_sharded, group["params"]))
        for group in groups
    )


def _found_here(unit: LaunchUnit, of: _OfUnit, ready: Staged | None) -> tuple[Tensor, Tensor]:
    """What this rank knows of the balls of a unit.

    Returns:
        int64 [sets, WORDS]: the sums of their sets.
        int64 [balls]: not 0 for those of which this rank has moved an element.
    """
    joint = of.joint
    moved = torch.zeros(len(of.balls), dtype=torch.int64, device=of.sets.device)
    if ready is None:
        return _sums(unit, of), moved
    moved.index_add_(0, of.ball_of_member, joint.moved[of.members].long())
    found_inf = ready.found_inf
    if found_inf is not None:  # where it is not 0 the kernel has left what was there before
        moved *= found_inf.view(()) == 0
    return joint.digits[of.sets], moved


def _sums(unit: LaunchUnit, of: _OfUnit) -> Tensor:
    """The sums of sets that no launch has read."""
    table, sums = unit.table, []
    for index in of.sets.tolist():
        words = torch.zeros(WORDS, dtype=torch.int64, device=of.sets.device)
        for i in np.flatnonzero(table.records["set"] == index + 1).tolist():
            for part in _parts(table.slots[i].local):
                words = carried(words + sum_of_squares(part))
        sums.append(words)
    return torch.stack(sums)


def _project(unit: LaunchUnit, of: _OfUnit) -> None:
    """Scale the elements of a rank that launches nothing, as other ranks have moved theirs."""
    for ball in of.balls:
        factor = of.joint.factors[ball.sets[0]]
        if factor.device.type == "cpu" and float(factor) == 1.0:
            continue
        slots = [unit.table.slots[i] for i in ball.members.tolist()]
        for part in (part for slot in slots for part in _parts(slot.local)):
            part.copy_(toward_zero(part.double() * factor, part.dtype))
        increment_versions([slot.param for slot in slots])


def _parts(local: Tensor) -> Sequence[Tensor]:
    """Views of a tensor, whatever its strides, that fit into memory in higher precision too."""
    if not local.dim() or local.numel() <= _AT_ONCE:
        return [local.detach()]
    return local.detach().split(max(1, _AT_ONCE * len(local) // local.numel()))
