"""Keeps the module of averages at the optimizer's tensors: at each use of it or, where asked for, after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary, finalize, ref

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.hooks import RemovableHandle

from ..groups.rules import as_integer, as_number
from ..memory.presence import is_abstract
from ..memory.sharding import is_sharded
from ..torch_compat import disable_dynamo
from .averaged_places import Place, places

Buffers = Literal["shared", "own", "copied", "averaged"]
WRITTEN = ("copied", "averaged")  # by each step
_followed: WeakKeyDictionary[nn.Module, ref[Following]] = WeakKeyDictionary()


class _Met(NamedTuple):
    """The engine, which is another one where somebody has moved or exchanged state, and the state of the optimizer; of
    each parameter where it is held, its entry and average, and where that is now.
    """

    engine: ref[Any] | None
    state: Mapping[Tensor, Any]
    found: list[tuple[Any, ...]]


class Following:
    """What a module of averages needs of its optimizer, which it does not hold: the optimizer may hold it.

    Args:
        own: the module that holds the averages.
        trained: the other one.
        is_given: `own` was there before, and others use it without asking for it: it takes over its averages right
            after a step, and before the first one its weights are copies.
        schedule: returns the decay by the number of steps that were taken.
        buffers: as `AveragedModule` says.
    """

    def __init__(
        self,
        own: nn.Module,
        trained: nn.Module,
        is_given: bool,
        schedule: Callable[[int], float] | None,
        buffers: Buffers,
    ) -> None:
        self.is_given, self.schedule, self.buffers = is_given, schedule, buffers
        self.count, self.is_over = 0, False
        self._last: Any = None  # the optimizer's report of a step, as it was seen last
        self._handles: list[RemovableHandle] = []
        self._parts = [(m._modules, dict(m._modules)) for m in trained.modules()]
        self._params = places(own, trained, "_parameters")
        self._met: _Met | None = None  # what the last look found, if it was the simple case
        # groups and trained parameters when they were looked at last, and those of the groups that have any of these
        self._of_groups: tuple[list[Any], list[Tensor], list[dict[str, Any]]] = [], [], []
        self._of_buffers = [] if buffers == "own" else places(own, trained, "_buffers")

    def watch(self, optimizer: Any, own: nn.Module) -> None:
        """Have the optimizer tell of its steps, if there is anything to do then; for `own` an earlier one is over.

        A copy that nobody holds any more needs nothing: it is over, too.
        """
        for hook in [*optimizer._optimizer_step_post_hooks.values()]:
            other = getattr(hook, "__self__", None)
            if isinstance(other, Following) and other.is_over:
                other.remove()
        self._last = optimizer._shared.last
        if self.is_given or self.schedule is not None or self.buffers in WRITTEN:
            self._handles = [
                optimizer.register_step_post_hook(self.after_step),
                optimizer.register_load_state_dict_post_hook(self.after_load),
            ]
        if not self.is_given:
            finalize(own, _end, ref(self)).atexit = False
        if self.is_given:
            self._handles.append(optimizer.register_step_pre_hook(self.before_step))
            earlier = _followed[own]() if own in _followed else None
            if earlier is not None:
                earlier.remove()
            _followed[own] = ref(self)  # which would hold the module

    def remove(self) -> None:
        """Have the optimizer tell of nothing any more."""
        for handle in self._handles:
            handle.remove()

    def end(self) -> None:
        """Let everything go, in whatever step the collector comes: then no hook may be removed from those that run."""
        self.is_over = True
        self.schedule, self._met, self._parts, self._params = None, None, [], []
        self._of_groups, self._of_buffers = ([], [], []), []

    @disable_dynamo
    def follow(self, optimizer: Any) -> None:
        """Have the module hold the averages and buffers of now: addresses are compared, and tell of anything new."""
        shared = optimizer._shared
        shared.refuse_averages("AveragedModule")
        state = shared.state
        self._refuse_other_layers()
        simple = []
        for own, trained, name, label in self._params:
            param, mine = trained[name], own[name]
            entry = state.get(param)
            average = None if entry is None else entry.get("ema")
            if average is None:  # no step yet, or frozen
                check(optimizer, label, param)
                average = param.data
                if self.is_given and param.requires_grad:  # it must not move with the weights
                    mine.data.copy_(average)
                    continue
            if average.dtype is not param.dtype:
                if self.is_given and mine.data_ptr() != param.data_ptr():
                    mine.data.copy_(average)
                else:
                    mine.data = average.to(param.dtype)
            elif mine.data_ptr() != average.data_ptr() or mine.shape != average.shape:
                mine.data = average
            if entry is not None and average.dtype is mine.dtype:
                simple.append((trained, name, param, entry, average, mine, mine.data_ptr()))
        engine = None if shared.engine is None else ref(shared.engine)
        is_simple = len(simple) == len(self._params)
        self._met = _Met(engine, state, simple) if is_simple else None
        if self.buffers == "shared":
            for own, trained, name, _ in self._of_buffers:
                own[name] = trained[name]

    @disable_dynamo
    def before_step(self, optimizer: Any, *_: Any) -> None:
        """A hook of the optimizer: raise for what could not be followed after the step, before anything is modified."""
        self._refuse_other_layers()
        if self.schedule is not None or not _lack_decay(optimizer.param_groups):
            return
        if _lack_decay(self._groups_at_hand(optimizer)):
            for place in self._params:
                check(optimizer, place.label, place.pair[1])

    @disable_dynamo
    def after_step(self, optimizer: Any, _: tuple[Any, ...], how: Mapping[str, Any]) -> None:
        """A hook of the optimizer: the decay of the next step, averages where they lie now, buffers."""
        if self.is_over:
            return
        role = how.get("role")
        group = self.first_group(optimizer)
        last, self._last = self._last, optimizer._shared.last
        is_step = last is not self._last  # and no request for state
        if is_step and (role is None or group is None or group["role"] == role):
            if self.buffers in WRITTEN:
                self.write_buffers(None if group is None else group["ema_decay"])
            if self.schedule is not None:
                self.count = self._counted(optimizer)
                set_decay(self.groups(optimizer), checked_decay(self.schedule(self.count)))
        if self.is_given and not self._is_current(optimizer._shared):
            self.follow(optimizer)

    @disable_dynamo
    def after_load(self, optimizer: Any) -> None:
        """A hook of the optimizer: as many steps are taken as the loaded state says."""
        if self.is_over:
            return
        self.count = self.taken(optimizer)
        if self.schedule is not None:
            set_decay(self.groups(optimizer), checked_decay(self.schedule(self.count)))
        if self.is_given:
            self.follow(optimizer)

    def _counted(self, optimizer: Any) -> int:
        """The steps that were taken, as a resumed run finds them, or one more where only a device knows."""
        first = next(self._trained(), None)
        entry = None if first is None else optimizer._shared.state.get(first)
        count = entry.get("step") if entry else None
        is_on_device = isinstance(count, Tensor) and count.device.type != "cpu"
        return self.count + 1 if is_on_device else self.taken(optimizer)

    def taken(self, optimizer: Any) -> int:
        """The steps that the optimizer took while the first trained parameter had a gradient."""
        group = self.first_group(optimizer)
        if group is None:
            return 0
        entry = optimizer._shared.state.get(next(self._trained()))
        if not entry or entry.get("step") is None:
            return 0
        waited = int(entry.get("waited") or 0) // 2  # its first bit says something else
        return int(entry["step"]) * as_integer(group["update_every"]) + waited

    def groups(self, optimizer: Any) -> list[dict[str, Any]]:
        """The param groups that have trained parameters of the module."""
        trained = [*self._trained()]
        if not _are_same(trained, self._of_groups[1]):  # some were frozen or unfrozen
            self._of_groups = [], trained, []
        return self._groups_at_hand(optimizer)

    def _groups_at_hand(self, optimizer: Any) -> list[dict[str, Any]]:
        """As `groups`, by what was trained when that was asked last."""
        now, (before, trained, found) = optimizer.param_groups, self._of_groups
        if not _are_same(now, before):
            known = {id(param) for param in trained}
            found = [group for group in now if any(id(p) in known for p in group["params"])]
            self._of_groups = [*now], trained, found
        return found

    def first_group(self, optimizer: Any) -> dict[str, Any] | None:
        """The group of the first trained parameter: its steps are counted, and buffers move with it."""
        first = next(self._trained(), None)
        for group in optimizer.param_groups:
            if any(first is member for member in group["params"]):
                return group
        return None

    @torch.no_grad()
    def write_buffers(self, decay: Any) -> None:
        """Copy the trained module's buffers, or average those that are no integers; None copies all."""
        averaged: tuple[list[Tensor], list[Tensor]] = [], []
        for place in self._of_buffers:
            mine, theirs = place.pair
            if mine is theirs:
                continue
            if decay is not None and self.buffers == "averaged" and mine.is_floating_point():
                averaged[0].append(mine)
                averaged[1].append(theirs)
            else:
                mine.copy_(theirs)
        if averaged[0]:
            get_ema_multi_avg_fn(as_number(decay))(*averaged, 0)

    def _is_current(self, shared: Any) -> bool:
        """Tell whether all is as the last look found it: a step in a thousand finds anything else."""
        met = self._met
        if met is None or met.engine is None or met.state is not shared.state:
            return False
        if met.engine() is not shared.engine:
            return False
        if self.buffers == "shared" and any(a is not b for a, b in map(_pair, self._of_buffers)):
            return False
        for trained, name, param, entry, average, mine, address in met.found:
            if trained[name] is not param or entry.get("ema") is not average:
                return False
            if mine.data_ptr() != address:
                return False
        return True

    def _refuse_other_layers(self) -> None:
        if any(now != before for now, before in self._parts):
            raise RuntimeError(
                "AveragedModule: layers of the trained module were exchanged, added or removed since this one was "
                "made; make it anew"
            )

    def __getstate__(self) -> dict[str, Any]:
        # a copy finds these anew: they are parts of the optimizer, which makes its own copies
        return {
            **self.__dict__,
            "_met": None,
            "_last": None,
            "_of_groups": ([], [], []),
            "_handles": [],
        }

    def _trained(self) -> Any:
        return (param for place in self._params if (param := place.pair[1]).requires_grad)


def _end(of_copy: ref[Following]) -> None:
    """The copy is gone. A reference that is not weak would keep the trained module as long as the copy."""
    following = of_copy()
    if following is not None:
        following.end()


def _are_same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _lack_decay(groups: list[dict[str, Any]]) -> bool:
    return any(group["ema_decay"] is None for group in groups)


def _pair(place: Place) -> tuple[Tensor, Tensor]:
    return place.pair


def check(optimizer: Any, label: str, param: Tensor, needs_decay: bool = True) -> None:
    """Raise unless a parameter has memory that can be shared, and is averaged or frozen."""
    if is_sharded(param) or is_abstract(param):
        raise TypeError(
            f"AveragedModule: parameter {label!r} is sharded or has no memory of its own; its average can be read "
            "within ema_weights()"
        )
    if not param.requires_grad:
        return
    for group in optimizer.param_groups:
        if any(param is member for member in group["params"]):
            if group["ema_decay"] is None and needs_decay:
                raise ValueError(
                    f"AveragedModule: parameter {label!r} is in a param group without ema_decay"
                )
            return
    raise ValueError(f"AveragedModule: parameter {label!r} is in no param group")


def checked_decay(decay: Any) -> float:
    """Return a decay as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it lies outside of [0, 1].
    """
    try:
        value = float(decay)
    except (TypeError, ValueError):
        raise TypeError(
            f"AveragedModule: decay must be a number, or a function that returns one, got {decay!r}"
        ) from None
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"AveragedModule: invalid decay {decay!r}, must be in [0, 1]")
    return value


def set_decay(groups: list[dict[str, Any]], decay: float) -> None:
    """Have these groups average with it from the next step on."""
    for group in groups:
        group["ema_decay"] = decay
