"""Parts of tables: slots in any order, their runs and tiles."""

from __future__ import annotations

from cases import groups_of

import stackelberg_fused as sf
from stackelberg_fused.layout.part import Part


def test_slots_runs_and_tiles() -> None:
    groups = groups_of([[5000, 1, 0], [4096], [9000, 2]])
    table = sf.StackelbergAdam(groups)._engine.units[0].table
    part = Part(table, [5, 1, 0, 3])
    assert part.indices == [0, 1, 3, 5]
    assert [(run.first_slot, run.last_slot) for run in part.runs] == [(0, 2), (3, 4), (5, 6)]
    assert (part.first_slot, part.last_slot) == (0, 6)
    assert part.tiles[["record", "offset"]].tolist() == [(0, 0), (0, 4096), (1, 0), (3, 0), (5, 0)]
    assert (part.first_tile, part.last_tile) == (0, 5)
    heads = table.spans["head"].first_slot
    assert part.first_head_tile == sum(record < heads for record in part.tiles["record"])


def test_all_slots_have_the_tiles_of_the_table() -> None:
    table = sf.StackelbergAdam(groups_of([[5000, 1], [4097]]))._engine.units[0].table
    part = Part(table, reversed(range(3)))
    assert part.tiles.tolist() == table.tiles.tolist()
    assert part.first_head_tile == table.first_head_tile
    assert Part(table, []).indices == []
