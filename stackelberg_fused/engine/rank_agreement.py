"""Ranks that hold shards of the same parameters have to have them in the same groups, or they wait for each other."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..groups.float32_state import name_of
from ..groups.param_groups import group_label, param_label
from ..groups.rules import HYPERPARAMETERS
from ..groups.schemes import scheme_of
from ..memory.sharding import is_in, is_sharded, ranks_of
from ..torch_compat import default_store
from .across_rebuilds import AcrossRebuilds

# settings that ranks may differ in: they decide about numbers, not about what is communicated
_NUMBERS = ("lr", "weight_decay", "betas", "eps", "momentum", "dampening", "float32_state")


def refuse_different_ranks(
    groups: Sequence[dict[str, Any]], options: Mapping[str, Any], timeout: float | None = None
) -> None:
    """Raise on every rank of a mesh where one of them has other groups, parameters or settings of its shards.

    To be called on all ranks, before the first collective of an optimizer. It goes through the store of the process
    group, a few short messages a rank, and does nothing without shards.

    Args:
        groups: checked param groups.
        options: settings of the optimizer as a whole that ranks have to agree on, by name.
        timeout: seconds to wait for a rank; None for as long as the store waits.

    Raises:
        ValueError: names the first difference.
        RuntimeError: names a rank that did not come.
    """
    for ranks in _meshes(groups):
        if len(ranks) > 1:
            _compare(ranks, _facts(groups, options, ranks), timeout)


def refuse_different_ranks_once(
    groups: Sequence[dict[str, Any]], options: Mapping[str, Any], across_rebuilds: AcrossRebuilds
) -> None:
    """As `refuse_different_ranks`, before the first collective of an optimizer and after groups were added."""
    # not whenever the engine was built again: an edit on one rank alone would have it wait for the others
    if across_rebuilds.agreed_groups != len(groups):
        refuse_different_ranks(groups, options)
        across_rebuilds.agreed_groups = len(groups)


def _ranks_of(param: Any) -> tuple[int, ...]:
    return ranks_of(param.device_mesh)


def _meshes(groups: Sequence[dict[str, Any]]) -> list[tuple[int, ...]]:
    """The ranks of each mesh of this one; in an order that two ranks have alike for the meshes that they share."""
    params = [p for group in groups for p in group["params"] if is_sharded(p)]
    return sorted({_ranks_of(p) for p in params if is_in(p.device_mesh)})


def _facts(
    groups: Sequence[dict[str, Any]], options: Mapping[str, Any], ranks: tuple[int, ...]
) -> dict[str, str]:
    """What these ranks have to agree on, each by what it is called; ranks of other meshes may have anything else."""
    here = [
        [
            (position, p)
            for position, p in enumerate(group["params"])
            if is_sharded(p) and _ranks_of(p) == ranks
        ]
        for group in groups
    ]
    facts = {"the number of param groups with shards": str(sum(map(bool, here)))}
    facts.update((name, repr(value)) for name, value in options.items())
    for index, (group, members) in enumerate(zip(groups, here, strict=True)):
        if not members:
            continue
        label = group_label(index, group)
        facts[f"the number of parameters of param group {index}"] = str(len(members))
        facts[f"role of param group {index}"] = repr(group["role"])
        facts[f"rule of {label}"] = repr(group["rule"])
        for name in HYPERPARAMETERS[group["rule"]]:
            if name not in _NUMBERS:
                facts[f"{name} of {label}"] = repr(group[name])
        for position, param in members:
            facts[f"parameter {position} of {label}"] = _described(index, group, position, param)
    return facts


def _described(index: int, group: dict[str, Any], position: int, param: Any) -> str:
    name = param_label(index, group, position).partition(" of param group")[0]
    scheme = scheme_of(group, param, name_of(group, position))
    return (
        f"{name}, whole shape {tuple(param.shape)}, {param.dtype}, placements {param.placements}, "
        f"state {scheme.state}, {'trained' if param.requires_grad else 'frozen'}"
    )


class _Exchange:
    """Messages of one comparison of some ranks, in the store of the process group."""

    def __init__(self, store: Any, ranks: tuple[int, ...], timeout: float | None) -> None:
        from torch.distributed import get_rank

        self._store = store
        self.me = get_rank()
        self._seconds = store.timeout.total_seconds() if timeout is None else timeout
        self._began = time.monotonic()
        prefix = f"stackelberg_fused/{hashlib.sha256(repr(ranks).encode()).hexdigest()}"
        # the same on all ranks, which compare their optimizers in the same order
        number = store.add(f"{prefix}/{self.me}", 1)
        self._prefix = f"{prefix}/{number}"

    def say(self, what: str, message: str) -> None:
        self._store.set(f"{self._prefix}/{what}/{self.me}", message)

    def hear(self, what: str, rank: int, times: int = 1) -> str | None:
        """What a rank said; None if it does not within the timeout, or `times` as long, from the beginning."""
        key, pause = f"{self._prefix}/{what}/{rank}", 0.0005
        end = self._began + times * self._seconds
        # instead of store.wait(), which no interrupt ends
        while not self._store.check([key]):
            if time.monotonic() > end:
                return None
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return self._store.get(key).decode()

    def absent(self, rank: int) -> RuntimeError:
        return RuntimeError(
            f"rank {rank} holds parts of the parameters of rank {self.me}, but did not come to the first step of such "
            f"an optimizer within {self._seconds:.0f} s: every rank of a mesh has to take the same steps"
        )


def _is_simulated() -> bool:
    """Tell whether there are no other ranks: the process group only looks as if."""
    from torch.distributed import get_backend

    return get_backend() == "fake"


def _compare(ranks: tuple[int, ...], facts: dict[str, str], timeout: float | None) -> None:
    """Have the first rank compare digests and tell all; where they differ, two ranks say what they have."""
    store = None if _is_simulated() else default_store()
    if store is None:
        return
    exchange, first = _Exchange(store, ranks, timeout), ranks[0]
    text = json.dumps(facts)
    digest = hashlib.sha256(text.encode()).hexdigest()
    exchange.say("digest", digest)
    if exchange.me == first:
        exchange.say("verdict", json.dumps(_verdict(exchange, ranks, digest)))
    if exchange.hear("digest", first) is None:
        raise exchange.absent(first)
    said = exchange.hear(
        "verdict", first, 3
    )  # the first rank may have come late, and then waited for others
    if said is None:
        raise exchange.absent(first)
    other, is_absent = json.loads(said)
    if other is None:
        return
    if is_absent:
        raise exchange.absent(other)
    if exchange.me in (first, other):
        exchange.say("facts", text)
    here, there = exchange.hear("facts", first, 4), exchange.hear("facts", other, 4)
    if here is None or there is None:
        raise exchange.absent(first if here is None else other)
    raise ValueError(_difference(json.loads(here), json.loads(there), first, other))


def _verdict(exchange: _Exchange, ranks: tuple[int, ...], digest: str) -> tuple[int | None, bool]:
    """A rank that differs from the first one, and whether it did not come at all; None if all agree."""
    for rank in ranks[1:]:
        found = exchange.hear("digest", rank)
        if found != digest:
            return rank, found is None
    return None, False


def _difference(ours: dict[str, str], theirs: dict[str, str], first: int, other: int) -> str:
    for name in {**ours, **theirs}:
        here, there = ours.get(name, "missing"), theirs.get(name, "missing")
        if here != there:
            return (
                f"ranks that share parameters need the same param groups: {name} is {here} on rank {first}, "
                f"but {there} on rank {other}"
            )
    raise AssertionError("equal facts have equal digests")
