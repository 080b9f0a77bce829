"""Has trainers of other libraries find, on a rank of `ranks.py`, that a launcher started them, as torchrun does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch.distributed as dist


@contextmanager
def launched() -> Iterator[None]:
    """Within this context the environment says so. The process group is there already; trainers take it, and leave it.

    Accelerate keeps what it found for the life of the process, so it is made to forget it, before and after.
    """
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    says = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": "0",
        "WORLD_SIZE": world,
        "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",  # nobody connects to it
        "TORCHELASTIC_RUN_ID": "tests",
    }
    _forget()
    with mock.patch.dict(os.environ, says):
        try:
            yield
        finally:
            _forget()


def _forget() -> None:
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
