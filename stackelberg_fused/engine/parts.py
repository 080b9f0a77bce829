"""A step that is taken in parts, as gradients arrive: `Engine.begin`, then `update` for each part, then `finish`."""

from __future__ import annotations

from collections.abc import Mapping

from ..layout.part import Part
from .clear_gradients import clear_gradients
from .engine import Engine
from .launch_unit import Staged
from .side_stream import SideStreams


def update(engine: Engine, parts: Mapping[int, Part], streams: SideStreams) -> int:
    """Update parts of tables whose gradients are complete; returns the launches made.

    Args:
        engine: it has begun a step.
        parts: by the index of their launch unit.
        streams: where the updates run on a GPU.

    Raises:
        ValueError, TypeError, RuntimeError: a gradient or a rebound parameter does not fit; names the parameter. None
            of these parts was modified.
        RebuildNeeded: the engine has to be built again.
    """
    units = engine.units
    pending = {index: units[index].prepare_part(part) for index, part in parts.items()}
    _refuse_overlap(engine)
    staged: list[Staged | None] = [None] * len(units)
    for index, read in pending.items():
        staged[index] = units[index].stage_part(read)
    with streams.after_current(staged):
        return engine.launch(staged)


def finish(
    engine: Engine, parts: Mapping[int, Part], role: str | None, streams: SideStreams
) -> int:
    """Update the parts that are left, and what is updated whole; returns the launches made.

    Args:
        engine: it has begun a step.
        parts: as for `update`: of the units that take parts.
        role: "body", "head" or None for both.
        streams: beside which the updates run now.

    Raises as `update`, with nothing modified here.
    """
    units = engine.units
    pending = {index: units[index].prepare_part(part) for index, part in parts.items()}
    whole = {i: unit.prepare(role) for i, unit in enumerate(units) if not unit.takes_parts}
    _refuse_overlap(engine)
    if engine.balls is not None:
        engine.balls.prepare(None, None, role)
    staged: list[Staged | None] = [None] * len(units)
    for index, read in pending.items():
        staged[index] = units[index].stage_part(read)
    for index, all_read in whole.items():
        staged[index] = units[index].stage(all_read, False, None, counted=True)
    balls = engine.balls
    launches = engine.launch(staged) if balls is None else balls.launch(staged, role)
    # as long as `staged` holds gradients that the launches freed
    streams.let_sources_wait()
    for index, all_read in whole.items():
        clear_gradients(units[index], all_read, staged[index])
    engine.note_new_state()
    return launches


def _refuse_overlap(engine: Engine) -> None:
    """Raise for parameters that somebody put into the memory of others since gradients were last read."""
    if any(unit.gradients.has_rebound for unit in engine.units):
        engine.refuse_overlap()
