"""The model of the demo."""

from __future__ import annotations

import pytest
import torch

from stackelberg_fused.demo.gpt import GPT, GPTConfig

SMALL = GPTConfig(vocabulary=11, context=8, layers=2, heads=2, width=12)


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


def test_gpt_generates_within_its_context():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    generated = GPT(SMALL).generate(tokens, 20, torch.Generator().manual_seed(0))
    assert generated.shape == (2, 23)
    assert torch.equal(generated[:, :3], tokens)
