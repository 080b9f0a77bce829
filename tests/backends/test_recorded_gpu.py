"""Whole optimizers on a GPU that is recorded: nothing there races, and they end with the bits of `cpu`."""

from __future__ import annotations

import pytest
import torch
from needs import needs_posed_gpu
from recording.scenarios import SCENARIOS
from recording.training import SCHEDULES, Training, arrive, gradients_arrive, recorded

import stackelberg_fused as sf
from stackelberg_fused.backends.cuda import CudaBackend
from stackelberg_fused.engine import side_stream
from stackelberg_fused.engine.side_stream import IN_FLIGHT
from stackelberg_fused.layout.part import Part
from stackelberg_fused.layout.statistics import ClipLimits
from stackelberg_fused.optimizers import release

pytestmark = needs_posed_gpu


@pytest.mark.filterwarnings("ignore:body and head now share one learning rate")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whole_optimizers(scenario: str, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "BATCH_BYTES", 100)  # several batches of such small parameters
    run, settings = SCENARIOS[scenario]
    with recorded(schedule) as gpu:
        training = Training(gpu, **settings)
        run(training)
        training.check()


STEADY = ("everything", "scaled", "roles, capturable", "released")


@pytest.mark.parametrize("scenario", STEADY)
def test_the_host_waits_for_nothing(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all that a training needs is there, but for the scales that the scenario itself puts onto the GPU."""
    monkeypatch.setattr(release, "BATCH_BYTES", 100)
    run, settings = SCENARIOS[scenario]
    with recorded() as gpu:
        training = Training(gpu, **settings)
        run(training)
        gpu.waits.clear()
        run(training)
        waits = [line for line in gpu.waits if "scenarios.py" not in line]
        assert waits == []
        training.check()


@pytest.mark.parametrize("in_flight", [IN_FLIGHT, 1000])
def test_memory_of_updates_in_flight_is_bounded(
    in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of two updates are held, and not those of a whole backward pass."""
    monkeypatch.setattr(release, "BATCH_BYTES", 100)
    monkeypatch.setattr(side_stream, "IN_FLIGHT", in_flight)
    size, count = 4096, 20
    with recorded() as gpu:
        params = [torch.nn.Parameter(gpu.tensor(torch.ones(size))) for _ in range(count)]
        source = gpu.tensor(torch.ones(size))
        opt = sf.StackelbergSGD(params, lr=0.1, backend=CudaBackend(), release="backward")
        before = gpu.memory.in_use
        gpu.memory.most_in_use = 0
        with gradients_arrive() as finish:
            for p in params:
                p.grad = source * 2
                arrive(p)
            finish()
        most = (gpu.memory.most_in_use - before) / (4 * size)
        opt.step()
        gpu.synchronize()
        assert gpu.reports == []
    assert (most < IN_FLIGHT + 3) is (in_flight == IN_FLIGHT)


def test_a_capture_of_another_step_than_before_is_refused() -> None:
    """Its list of parameters without elements is not on the GPU, and cannot be brought there now."""
    with recorded() as gpu:
        training = Training(gpu, capturable=True)
        for _ in range(2):
            training.step()
        training.backward("head")
        with gpu.captured(), pytest.raises(RuntimeError, match="a step of the same parameters"):
            training.opt.step(role="head")
        gpu.synchronize()
        training.opt.step(role="head")
        training.cpu.step(role="head")
        training.check()


def test_tiles_of_a_part_are_held_for_replays() -> None:
    """As shards of several meshes are measured."""
    with recorded() as gpu:
        training = Training(gpu, capturable=True, max_grad_norm=1.0)
        training.step()
        training.backward()
        (unit,) = training.opt._ready().units
        part = Part(unit.table, range(3))
        staged = unit.stage(unit.prepare(None), True, None)
        unit.measure(staged, ClipLimits.none(), of=part)
        with gpu.captured() as graph:
            staged = unit.stage(unit.prepare(None), True, None)
            unit.measure(staged, ClipLimits.none(), of=part)
        del part
        graph.replay()
        gpu.synchronize()
        assert gpu.reports == []
