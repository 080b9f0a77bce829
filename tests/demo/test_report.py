"""The report of the demo claims no more than its losses show."""

from __future__ import annotations

import math

import pytest

from stackelberg_fused.demo.report import percent, verdict


def _record(name: str, ratio: float | None, *losses: float) -> dict:
    points = [(0, 3.0, 0.1), (50, losses[0], 0.3), (100, losses[-1], 0.5)]
    return {"name": name, "ratio": ratio, "body_lr": 0.1, "validation": points}


def test_verdict_claims_no_more_than_one_seed_shows():
    control = _record("torch AdamW", None, 2.0, 1.0)
    better, worse = _record("ratio 3", 3.0, 2.5, 0.9), _record("ratio 10", 10.0, 1.5, 1.2)
    first, second = verdict([control, better, worse])
    assert "ratio 3, 0.9000, 10.0% below torch AdamW. One seed" in first
    assert second == "Did not help: ratio 10 (+20.0% after leading up to step 50)."

    first, second = verdict([control, worse])
    assert "torch AdamW, 1.0000. One seed" in first
    assert second.startswith("No ratio helped: ratio 10 (+20.0%")

    # Ratio 1 at the control's rate is the control: that it ends a hair lower is not a win.
    first, second, third = verdict([control, _record("ratio 1", 1.0, 2.0, 0.999), worse])
    assert "torch AdamW, 1.0000. One seed" in first
    assert second.startswith("No ratio helped")
    assert "rounding alone made -0.10%" in third


def test_a_trial_run_draws_no_conclusion():
    records = [_record("torch AdamW", None, 2.0, 1.0), _record("ratio 3", 3.0, 2.5, 0.9)]
    for record in records:
        record["validation"] = [(step // 5, *rest) for step, *rest in record["validation"]]
    assert verdict(records) == ["20 steps show that it runs: too few to compare anything."]


@pytest.mark.parametrize(
    ("share", "spec", "text"),
    [
        (-0.0004, "+.1f", "+0.0%"),
        (0.0004, "+.1f", "+0.0%"),
        (-0.0004, ".1f", "0.0%"),
        (-0.0006, "+.1f", "-0.1%"),
        (-0.0004, "+.2f", "-0.04%"),
        (math.inf, "+.1f", "+inf%"),
    ],
)
def test_a_share_that_rounds_to_zero_has_no_minus(share, spec, text):
    assert percent(share, spec) == text
