"""The parts of the demo: data, model, and a fair comparison."""

from __future__ import annotations

import math

import pytest
import torch

from stackelberg_fused.demo import data
from stackelberg_fused.demo.gpt import GPT, GPTConfig
from stackelberg_fused.demo.report import percent, verdict
from stackelberg_fused.demo.tasks import TASKS
from stackelberg_fused.demo.trainer import Trainer

pytest.importorskip("sklearn")

SMALL = GPTConfig(vocabulary=11, context=8, layers=2, heads=2, width=12)


# --- data


def test_text_split_shares_nothing():
    split = data.split_text()
    (train_bytes,), (held_out,) = split.train, split.validation
    text, other = (bytes(part.tolist()).decode() for part in (train_bytes, held_out))
    assert len(train_bytes) > 400_000
    assert len(held_out) > 30_000
    paragraphs = {p.strip() for p in text.split("\n\n")} & {p.strip() for p in other.split("\n\n")}
    assert not paragraphs
    # Of stretches of 80 bytes, longer than any context, hardly one is known word for word.
    stretches = [other[i : i + 80] for i in range(0, len(other) - 80, 40)]
    assert sum(stretch in text for stretch in stretches) <= 0.01 * len(stretches)
    assert split.sha256() == data.split_text().sha256()


def test_digits_split_shares_nothing():
    split = data.split_digits()
    images, labels = split.train
    others, other_labels = split.validation
    assert (len(images), len(others)) == (len(labels), len(other_labels)) == (1438, 359)
    assert not {tuple(row) for row in images.tolist()} & {tuple(row) for row in others.tolist()}
    assert split.sha256() == data.split_digits().sha256()


def test_text_batches_predict_the_next_byte():
    text = torch.arange(100, dtype=torch.uint8)
    for inputs, targets in (
        data.text_batch(text, 50, 8, torch.Generator().manual_seed(0)),
        data.text_windows(text, 5, 8),
    ):
        assert torch.equal(inputs + 1, targets)
    starts = data.text_windows(text, 1000, 8)[0][:, 0]
    assert (starts.diff() >= 8).all()


# --- the model


def test_gpt_is_causal():
    torch.manual_seed(0)
    model = GPT(SMALL)
    tokens = torch.randint(SMALL.vocabulary, (3, SMALL.context))
    logits = model(tokens)
    assert logits.shape == (3, SMALL.context, SMALL.vocabulary)
    for position in range(SMALL.context):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % SMALL.vocabulary
        others = model(changed)
        assert torch.equal(others[:, :position], logits[:, :position])
        # ... and all that follows does see it.
        assert (others[:, position:] != logits[:, position:]).any(dim=-1).all()


@pytest.mark.parametrize("config", [SMALL, GPTConfig()])
def test_gpt_has_the_parameters_it_should(config):
    width = config.width
    attention = 4 * width * width + 4 * width
    mlp = 8 * width * width + 5 * width
    block = attention + mlp + 4 * width
    embeddings = (config.vocabulary + config.context) * width
    expected = embeddings + config.layers * block + 2 * width + width * config.vocabulary
    assert sum(p.numel() for p in GPT(config).parameters()) == expected


def test_a_head_of_zeros_starts_at_the_loss_of_a_guess():
    for task, classes in (("language", 256), ("digits", 10)):
        trainer = _trainer(task, 1, head_scale=0.0)
        trainer.evaluate()
        assert trainer.record["validation"][0][1] == pytest.approx(math.log(classes))


def test_gpt_generates_within_its_context():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    generated = GPT(SMALL).generate(tokens, 20, torch.Generator().manual_seed(0))
    assert generated.shape == (2, 23)
    assert torch.equal(generated[:, :3], tokens)


# --- the comparison


def _trainer(task: str, index: int, **changes) -> Trainer:
    from stackelberg_fused.demo.settings import DEFAULTS, Settings

    values = {"seed": 0, "backend": "auto", "device": "cpu", "threads": 1, "quick": True}
    settings = Settings(**{"task": task, **DEFAULTS[task], **values, "steps": 20, **changes})
    return Trainer(TASKS[task](quick=True), settings, index)


@pytest.mark.parametrize("task", TASKS)
def test_groups_keep_their_ratio_through_the_schedule(task):
    control = _trainer(task, 0, lr=0.01, body_lr=0.002, ratios=(5.0,))
    trainer = _trainer(task, 1, lr=0.01, body_lr=0.002, ratios=(5.0,))
    peak = 0.0
    for _ in range(20):
        rates = {group["role"]: group["lr"] for group in trainer.optimizer.param_groups}
        (one,) = {group["lr"] for group in control.optimizer.param_groups}
        assert rates["head"] == pytest.approx(5 * rates["body"])
        assert one == pytest.approx(5 * rates["body"])
        peak = max(peak, rates["body"])
        control.advance()
        trainer.advance()
    assert peak == pytest.approx(0.002)
    assert rates["body"] < 0.2 * peak


@pytest.mark.parametrize("task", TASKS)
def test_only_matrices_decay_in_every_run(task):
    for index in (0, 1):
        for group in _trainer(task, index).optimizer.param_groups:
            assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize("task", TASKS)
def test_runs_differ_in_nothing_but_the_optimizer(task):
    same_rates = {"lr": 0.003, "body_lr": 0.003, "ratios": (1.0, 10.0)}
    trainers = [_trainer(task, index, **same_rates) for index in range(3)]
    for trainer in trainers:
        for _ in range(20):
            trainer.advance()
    control, again, faster = (trainer.record["train_loss"] for trainer in trainers)
    assert control[0] == again[0] == faster[0]
    assert again == pytest.approx(control, rel=1e-4)
    assert faster != pytest.approx(control, rel=1e-4)


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
