"""Layers that are not made in the order in which they are applied."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from small_models import BLOCKS, WIDTH, Block
from torch import nn

import stackelberg_fused as sf

BEFORE, AFTER = 0.5 ** (BLOCKS + 1), 1.0


def _model(first: dict[str, nn.Module], later: dict[str, nn.Module] | None = None) -> nn.Module:
    """A stack of blocks with something made before it, and something made after it."""
    model = nn.Module()
    for name, module in first.items():
        model.add_module(name, module)
    model.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
    for name, module in {**(later or {}), "norm": nn.LayerNorm(WIDTH)}.items():
        model.add_module(name, module)
    return model


def _rates(model: nn.Module, **options: Any) -> dict[str, float]:
    groups = sf.layerwise_lr_decay(model, 0.5, lr=1.0, **options)
    return {name: group["lr"] for group in groups for name, _ in group["params"]}


def _conv(width: int) -> nn.Module:
    return nn.Conv2d(3, width, 4)


SIDES: dict[str, tuple[str, Any, float]] = {
    # of unusual names, by their shapes
    "classes": ("to_classes", lambda: nn.Linear(WIDTH, 5), AFTER),
    "two layers to classes": (
        "top",
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 5)),
        AFTER,
    ),
    "from pixels": ("lift", lambda: nn.Linear(12, WIDTH), BEFORE),
    "two layers from pixels": (
        "lift",
        lambda: nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, WIDTH)),
        BEFORE,
    ),
    "patches": ("lift", lambda: _conv(WIDTH), BEFORE),
    "a recurrent layer": ("rnn", lambda: nn.LSTM(5, WIDTH), BEFORE),
    "a network": (
        "eye",
        lambda: nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(6))),
        BEFORE,
    ),
    # by names, whatever their shapes
    "pooler": ("pooler", lambda: nn.Linear(WIDTH, WIDTH), AFTER),
    "final norm": ("final_norm", lambda: nn.LayerNorm(WIDTH), AFTER),
    "norm that goes out": ("out_norm", lambda: nn.LayerNorm(WIDTH), AFTER),
    "square input": ("input_proj", lambda: nn.Linear(WIDTH, WIDTH), BEFORE),
    "embedding": ("table", lambda: nn.Embedding(9, WIDTH), BEFORE),
    "norm": ("ln_pre", lambda: nn.LayerNorm(WIDTH), BEFORE),
    "inside of a part": (
        "parts",
        lambda: nn.ModuleDict({"pooler": nn.Linear(WIDTH, WIDTH)}),
        AFTER,
    ),
}


def test_made_before_the_blocks() -> None:
    for case, (name, make, rate) in SIDES.items():
        rates = _rates(_model({name: make()}))
        assert {r for n, r in rates.items() if n.startswith(name)} == {rate}, case
        assert rates["norm.weight"] == AFTER
        wrapped = torch.compile(_model({name: make()}))
        assert {r for n, r in _rates(wrapped).items() if f".{name}." in n} == {rate}, case


LATER: dict[str, tuple[Any, float]] = {
    "patch_embed": (lambda: _conv(WIDTH), BEFORE),
    "layernorm_embedding": (lambda: nn.LayerNorm(WIDTH), BEFORE),  # of BART's decoder
    "prompt_encoder": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 9)), BEFORE),  # PEFT's
    "embedding_norm": (lambda: nn.LayerNorm(WIDTH), AFTER),  # of LFM2, for all its name
    "anything": (lambda: nn.Linear(WIDTH, WIDTH), AFTER),
}


def test_made_after_the_blocks() -> None:
    for name, (make, rate) in LATER.items():
        rates = _rates(_model({"embed": nn.Embedding(9, WIDTH)}, {name: make()}))
        assert {r for n, r in rates.items() if n.startswith(name)} == {rate}, name


UNKNOWN: dict[str, Any] = {
    "as wide as the blocks": lambda: nn.Linear(WIDTH, WIDTH),
    "of other sizes": lambda: nn.Linear(5, 5),
    "without sizes": lambda: nn.Bilinear(2, 3, 4),
    "to several times the width": lambda: nn.Linear(WIDTH, 6 * WIDTH),  # PixArt's, for all blocks
    "from several": lambda: nn.Linear(3 * WIDTH, WIDTH),
}


def test_what_nothing_tells_is_refused_by_name() -> None:
    for case, make in UNKNOWN.items():
        model = _model({"top": make()})
        with pytest.raises(ValueError, match=r"whether 'top' comes before .* 'blocks' .* head="):
            _rates(model)
        assert _rates(model, head="top")["top.weight"] == AFTER, case
        layers = ["top", *(f"blocks.{i}" for i in range(BLOCKS)), "norm"]
        assert _rates(model, layers=layers)["top.weight"] == BEFORE, case


@pytest.mark.parametrize("later", [False, True])
def test_a_list_of_one_for_each_block(later: bool) -> None:
    """It goes with the blocks, wherever it was made."""
    own = {"adapters": nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))}
    rates = _rates(_model({}, own) if later else _model(own))
    for i in range(BLOCKS):
        assert rates[f"adapters.{i}.weight"] == rates[f"blocks.{i}.up.weight"]


@pytest.mark.parametrize("table", ["words", "positions"])
def test_as_many_outputs_as_tokens_are_a_last_layer(table: str) -> None:
    """A multiple of the width says nothing else, nor does the number of positions."""
    model = _model({"readouts": nn.Linear(WIDTH, 2 * WIDTH), table: nn.Embedding(2 * WIDTH, WIDTH)})
    if table == "positions":
        with pytest.raises(ValueError, match="whether 'readouts' comes before"):
            _rates(model)
        model.num_classes = 2 * WIDTH
    assert _rates(model)["readouts.weight"] == AFTER


def test_as_many_heads_as_blocks_are_heads() -> None:
    for name, out in (("tasks", 3), ("heads", WIDTH)):
        own = {name: nn.ModuleList(nn.Linear(WIDTH, out) for _ in range(BLOCKS))}
        for model in (_model({}, own), _model(own)):
            rates = _rates(model)
            assert {rate for n, rate in rates.items() if n.startswith(name)} == {AFTER}


@pytest.mark.parametrize("name", ["patch_embeds", "between"])
def test_layers_between_stages_go_with_the_stage_behind_them(name: str) -> None:
    """As Twins and ConvNeXt have them; the first of them makes the stages' input."""
    widths = [3, 4, 8, 16]
    layers = [nn.Conv2d(*pair, 2) for pair in itertools.pairwise(widths)]
    model = _model({name: nn.ModuleList(layers)})
    model.blocks = nn.Sequential(
        *(nn.Sequential(*(Block(width) for _ in range(9))) for width in widths[1:])
    )
    rates = _rates(model)
    for i in range(BLOCKS):
        assert rates[f"{name}.{i}.weight"] == rates[f"blocks.{i}.0.up.weight"] < 1


def test_as_many_inputs_as_blocks_come_before_all() -> None:
    own = {"patch_embeds": nn.ModuleList(nn.Conv2d(3, WIDTH, 2) for _ in range(BLOCKS))}
    rates = _rates(_model(own))
    assert {rate for n, rate in rates.items() if n.startswith("patch_embeds")} == {BEFORE}


def test_a_list_of_another_length_is_no_part_of_the_blocks() -> None:
    """As ConvNeXt's layers between stages: the first of them comes before all, the last one does not."""
    own = nn.ModuleList(nn.Conv2d(4 * i + 3, 4 * i + 7, 2) for i in range(BLOCKS - 1))
    with pytest.raises(ValueError, match=r"whether 'between\.0' comes before"):
        _rates(_model({"between": own}))


def test_a_matrix_of_the_model_itself() -> None:
    model = _model({})
    model.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 5, WIDTH)))
    assert _rates(model)["pos_embed"] == BEFORE  # parameters of its own come first in any order
    model.register_parameter("matrix", nn.Parameter(torch.zeros(5, WIDTH)))
    with pytest.raises(ValueError, match="whether 'matrix' comes before"):
        _rates(model)
    assert _rates(model, head="matrix")["matrix"] == AFTER


def test_tied_to_an_embedding_that_is_made_later() -> None:
    top, table = nn.Linear(WIDTH, 9, bias=False), nn.Embedding(9, WIDTH)
    top.weight = table.weight
    assert _rates(_model({"anything": top}, {"table": table}))["anything.weight"] == BEFORE


def test_a_stack_without_parameters_is_none() -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Sequential(nn.Tanh()) for _ in range(3))
    model.out = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="the layers of the model are not recognised"):
        _rates(model)
