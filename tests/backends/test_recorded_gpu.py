"""Whole optimizers on a GPU that is recorded: nothing there races, and they end with the bits of `cpu`."""

from __future__ import annotations

import pytest
from needs import needs_posed_gpu
from recording.scenarios import SCENARIOS
from recording.training import SCHEDULES, Training, recorded

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
