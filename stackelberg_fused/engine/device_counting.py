"""Step counts that a device keeps, for steps that the host does not know to be taken, and CUDA graphs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..backends.interrupts import make_calls
from ..layout.table import Table
from ..memory import device_runtime


def refuse_in_capture(table: Table, what: str) -> None:
    """Raise where memory would be allocated that every replay of a CUDA graph would clear."""
    if table.device.type == "cuda" and device_runtime.is_capturing():
        raise RuntimeError(
            f"step() is being captured in a CUDA graph, but {what} is not on the device yet: take a step before"
        )


def refuse_given_counts(table: Table) -> None:
    """Raise for counts in tensors of the user's, which a kernel would not advance."""
    for i in table.given_counts:
        raise ValueError(
            f"{table.slots[i].name}: state['step'] is a tensor that you put there, but this step is counted "
            "on the device (capturable=True, or a gradient scaler with fused=True), where only the optimizer's own "
            "counts are: load it with load_state_dict()"
        )


def count_on_device(table: Table, state: Mapping[Tensor, dict[str, Any]]) -> None:
    """Have a table's device count its steps from now on, and the state show these counts."""
    counts = table.device_counts()
    calls = []
    for i, tensors in enumerate(table.state_tensors):
        of_slot = (("step", counts.steps), ("waited", counts.waited))
        new = {name: values[i] for name, values in of_slot if name in tensors}
        if new:
            entry = state[table.slots[i].param]
            calls += [partial(tensors.update, new), partial(entry.update, new)]
    make_calls([*calls, *table.count_on_device(counts)])
