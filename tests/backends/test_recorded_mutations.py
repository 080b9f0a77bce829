"""Each safeguard between host and GPU is taken away once: the recorded GPU says what goes wrong without it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from needs import needs_posed_gpu
from recording.scenarios import SCENARIOS
from recording.training import Training, recorded

from stackelberg_fused.backends.device_tables import CapturedUploads, DeviceTables, PinnedRing
from stackelberg_fused.engine import device_counting, launch_unit
from stackelberg_fused.engine.side_stream import SideStream, SideStreams
from stackelberg_fused.layout.device_counts import DeviceCounts
from stackelberg_fused.layout.joint_sets import JointSets
from stackelberg_fused.layout.table import Table
from stackelberg_fused.memory import device_runtime
from stackelberg_fused.optimizers import accumulated, release

pytestmark = needs_posed_gpu

Patch = pytest.MonkeyPatch
MUTATIONS: dict[str, tuple[Callable[[Patch], None], str, str]] = {}


def mutation(scenario: str, report: str) -> Callable[[Any], Any]:
    """Register what a function takes away, the scenario that shows it, and what is to be reported."""

    def register(change: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTATIONS[change.__name__.strip("_")] = change, scenario, report
        return change

    return register


def _nothing(*arguments: Any, **more: Any) -> None:
    pass


class _Over:
    """In the place of an event: all is over already."""

    record = _nothing

    def query(self) -> bool:
        return True


# pinned blocks of uploads


@mutation(
    "steps", r"pinned block \d+ .* is overwritten by the host while copy .* may still read it"
)
def _event_of_the_ring_is_dropped(patch: Patch) -> None:
    original = device_runtime.Event

    def unrecorded() -> Any:
        event = original()
        event.record = _nothing  # type: ignore[method-assign]
        return event

    patch.setattr(device_runtime, "Event", unrecorded)


@mutation(
    "steps", r"pinned block \d+ .* is overwritten by the host while copy .* may still read it"
)
def _ring_does_not_ask(patch: Patch) -> None:
    upload = PinnedRing.upload

    def early(ring: PinnedRing, *arguments: Any) -> None:
        upload(ring, *arguments)
        pinned, view, _ = ring._blocks.pop()
        ring._blocks.append((pinned, view, _Over()))  # type: ignore[arg-type]

    patch.setattr(PinnedRing, "upload", early)


# tables, counts and statistics between streams


@mutation("roles", "without an event between them")
def _tables_do_not_wait(patch: Patch) -> None:
    def only_kept(tables: DeviceTables, before: Any, stream: Any, table: Table) -> None:
        for copy in tables._copies.values():
            device_runtime.keep_for(copy.tensor, stream)

    patch.setattr(DeviceTables, "_move_between", only_kept)


@mutation("rebuilt", "freed before its stream is through")
def _nothing_is_kept_for_streams(patch: Patch) -> None:
    patch.setattr(device_runtime, "keep_for", _nothing)


@mutation("dropped", r"memory of device_tables.py:\S+ was freed before its stream is through")
def _tables_are_not_kept(patch: Patch) -> None:
    def only_waiting(tables: DeviceTables, before: Any, stream: Any, table: Table) -> None:
        stream.wait_stream(before)
        for tensor in table.device_buffers():
            device_runtime.keep_for(tensor, stream)

    patch.setattr(DeviceTables, "_move_between", only_waiting)


@mutation(
    "dropped", r"memory of (device_counts|statistics).py:\S+ was freed before its stream is through"
)
def _counts_and_statistics_are_not_kept(patch: Patch) -> None:
    patch.setattr(Table, "device_buffers", lambda table: iter(()))


@mutation("roles, capturable", r"aten\.\S+ .* device_counts.py:\S+ without an event between them")
def _counts_of_empty_parameters_do_not_wait(patch: Patch) -> None:
    patch.setattr(launch_unit, "follow_current_stream", _nothing)


@mutation("joint sets of another stream", "does not wait for it|without an event between them")
def _joint_sets_do_not_wait(patch: Patch) -> None:
    def only_kept(sets: JointSets, stream: Any) -> None:
        for tensor in (*sets.results, *sets._numbers):
            device_runtime.keep_for(tensor, stream)

    patch.setattr(JointSets, "used_on", only_kept)


@mutation("dropped", r"memory of joint_sets.py:\S+ was freed before its stream is through")
def _joint_sets_are_not_kept(patch: Patch) -> None:
    patch.setattr(JointSets, "used_on", _nothing)


@mutation("moving", "without an event between them")
def _launches_go_to_one_stream(patch: Patch) -> None:
    first = device_runtime.current_stream()
    patch.setattr(device_runtime, "current_stream", lambda device=None: first)


# updates during the backward pass


@mutation("released", r"kernel step .*without an event between them")
def _join_does_not_wait(patch: Patch) -> None:
    patch.setattr(SideStream, "join", lambda side: side._in_flight.clear())


@mutation("released", "freed before its stream is through")
def _gradients_are_not_held(patch: Patch) -> None:
    running = SideStream.running
    patch.setattr(SideStream, "running", lambda side, reads: running(side, None))


@mutation("released", "freed before its stream is through")
def _gradients_are_let_go_without_waiting(patch: Patch) -> None:
    patch.setattr(SideStream, "_let_go", lambda side: side._in_flight.popleft())


@mutation("released", "freed before its stream is through")
def _only_the_joining_stream_waits(patch: Patch) -> None:
    def join(side: SideStream) -> None:
        device_runtime.current_stream().wait_stream(side._stream)
        side._in_flight.clear()

    patch.setattr(SideStream, "join", join)


@mutation("released", "without an event between them|does not wait for it")
def _other_sources_are_not_noted(patch: Patch) -> None:
    patch.setattr(SideStream, "note_source", _nothing)


@mutation("released", "without an event between them|does not wait for it")
def _updates_do_not_wait_for_gradients(patch: Patch) -> None:
    new = device_runtime.Stream

    def impatient(device: Any) -> Any:
        stream = new(device)
        stream.wait_stream = _nothing  # type: ignore[method-assign]
        return stream

    patch.setattr(device_runtime, "Stream", impatient)


@mutation("released at the end", "freed before its stream is through")
def _sources_do_not_wait_for_the_rest(patch: Patch) -> None:
    patch.setattr(SideStream, "let_sources_wait", _nothing)


@mutation("released in step", "freed before its stream is through")
def _sources_do_not_wait_for_a_step(patch: Patch) -> None:
    patch.setattr(SideStreams, "let_sources_wait", _nothing)


# capture


@mutation("replayed", "is overwritten by the host, and a graph's replays read it")
def _captured_block_is_handed_out_twice(patch: Patch) -> None:
    upload = CapturedUploads.upload

    def again(uploads: CapturedUploads, *arguments: Any) -> Any:
        before = list(uploads._spare)
        made = upload(uploads, *arguments)
        left = {id(block) for block in uploads._spare}
        uploads._spare += [block for block in before if id(block) not in left]
        uploads._spare.reverse()
        return made

    patch.setattr(CapturedUploads, "upload", again)


@mutation("replayed", "allocates pinned memory under capture")
def _nothing_is_provided_for_captures(patch: Patch) -> None:
    patch.setattr(CapturedUploads, "provide", _nothing)


@mutation("replayed when rebuilt", r"was freed, and .* of a graph's replay uses it")
def _nothing_is_held_for_replays(patch: Patch) -> None:
    patch.setattr(CapturedUploads, "hold", _nothing)


@mutation("replayed", r"device_counts.py:\S+ was freed, and .* of a graph's replay uses it")
def _masks_are_not_held_for_replays(patch: Patch) -> None:
    advances = DeviceCounts.advances_of_empty

    def forgetful(counts: DeviceCounts, *arguments: Any) -> Any:
        made = advances(counts, *arguments)
        counts._held_for_replays.clear()
        return made

    patch.setattr(DeviceCounts, "advances_of_empty", forgetful)


@mutation("captured at once", "under capture")
def _capture_may_be_the_first_step(patch: Patch) -> None:
    patch.setattr(launch_unit, "refuse_in_capture", _nothing)
    patch.setattr(device_counting, "refuse_in_capture", _nothing)
    patch.setattr(CapturedUploads, "provide", _nothing)


@mutation("alternating", r"by accumulated.py:\S+ under capture")
def _gradients_are_read_under_capture(patch: Patch) -> None:
    never = SimpleNamespace(is_capturing=lambda: False)
    patch.setattr(accumulated, "device_runtime", never)


@mutation("replayed", "is overwritten by the host|of a graph's replay uses it|under capture")
def _capture_is_not_noticed(patch: Patch) -> None:
    patch.setattr(device_runtime, "is_capturing", lambda: False)


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_goes_wrong_is_reported(name: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(release, "BATCH_BYTES", 100)
    change, scenario, report = MUTATIONS[name]
    run, settings = SCENARIOS[scenario]
    with recorded("late") as gpu:
        with Patch.context() as patch:  # its changes go before the recorded GPU does
            change(patch)
            with contextlib.suppress(RuntimeError):  # what the library makes of nonsense may be one
                run(Training(gpu, **settings))
            gpu.synchronize()
        found = [line for line in gpu.reports if re.search(report, line)]
        assert found, gpu.reports
