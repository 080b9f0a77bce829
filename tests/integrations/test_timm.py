"""timm's groups, factory and schedulers with our optimizer, beside torch's."""

from __future__ import annotations

import importlib.util
import itertools
from functools import partial
from typing import Any

import pytest
import torch
from beside_torch import assert_close_weights
from without_torchvision import import_with_stub

import stackelberg_fused as sf

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("lightning")]


@pytest.fixture(scope="module")
def timm() -> Any:
    if importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm, which is not installed")
    import_with_stub("timm")
    import_with_stub("timm.scheduler")
    return import_with_stub("timm.optim")


def _vit() -> Any:
    import timm

    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=3, num_heads=2, num_classes=3
    )


def _train(model: Any, optimizer: Any, schedule: Any, steps: int = 5) -> Any:
    random = torch.Generator().manual_seed(0)
    for number in range(steps):
        images = torch.randn(4, 3, 32, 32, generator=random)
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step_update(number + 1)
    return model


def _cosine(optimizer: Any) -> Any:
    from timm.scheduler import CosineLRScheduler

    return CosineLRScheduler(
        optimizer, t_initial=10, warmup_t=2, warmup_lr_init=1e-6, t_in_epochs=False
    )


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_layer_decay_as_with_torchs(timm: Any, backend: str) -> None:
    """`lr_scale` is timm's word: its schedulers multiply by it, ours and torch's optimizers let it lie there."""
    trained = []
    for kind in (partial(sf.StackelbergAdamW, backend=backend), torch.optim.AdamW):
        model = _vit()
        groups = timm.param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
        optimizer = kind(groups, lr=1e-3)
        assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
        scales = [group["lr_scale"] for group in optimizer.param_groups]
        schedule = _cosine(optimizer)
        assert [g["lr"] for g in optimizer.param_groups] == [1e-6 * s for s in scales]
        trained.append(_train(model, optimizer, schedule))
    assert len({group["lr"] for group in optimizer.param_groups}) == 5
    assert_close_weights(*trained)


def test_without_timms_scheduler_lr_scale_does_nothing(timm: Any) -> None:
    """`sf.layerwise_lr_decay` writes rates themselves."""
    model = _vit()
    groups = timm.param_groups_layer_decay(model, layer_decay=0.5)
    for kind in (sf.StackelbergAdamW, torch.optim.AdamW):
        optimizer = kind(groups, lr=1e-3)
        torch.optim.lr_scheduler.LinearLR(optimizer, 0.5)
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
    ours = sf.layerwise_lr_decay(model, 0.5, lr=1e-3)
    assert len({group["lr"] for group in ours}) == 5


def test_rates_of_layerwise_lr_decay_are_timms(timm: Any) -> None:
    """But for the final norm, which goes with the head here and with the last block there."""
    model = _vit()
    names = {param: name for name, param in model.named_parameters()}

    def rates(groups: Any, rate: Any) -> dict[str, float]:
        pairs = ((p[1] if isinstance(p, tuple) else p, g) for g in groups for p in g["params"])
        return {names[param]: rate(group) for param, group in pairs}

    theirs = timm.param_groups_layer_decay(model, layer_decay=0.5)
    ours = sf.layerwise_lr_decay(model, 0.5, lr=1.0)
    found, expected = rates(ours, lambda g: g["lr"]), rates(theirs, lambda g: g["lr_scale"])
    for name in ("norm.weight", "norm.bias"):
        assert (found.pop(name), expected.pop(name)) == (1.0, 0.5)
    assert found == expected


def test_a_warm_up_begins_at_a_ratio_of_one(timm: Any) -> None:
    """`warmup_lr_init` is one rate for all groups, from which each climbs to its own."""
    model = _vit()
    for kind in (sf.StackelbergAdamW, torch.optim.AdamW):
        groups = sf.split_body_head(model, head="head")
        for group, rate in zip(groups, (1e-4, 1e-3), strict=True):
            group["lr"] = rate
        optimizer = kind(groups)
        schedule = _cosine(optimizer)
        ratios = []
        for number in range(3):
            body, head = (group["lr"] for group in optimizer.param_groups)
            ratios.append(head / body)
            schedule.step_update(number + 1)
        assert ratios[0] == 1.0
        assert 1.0 < ratios[1] < 10.0 == pytest.approx(ratios[2])


def test_lr_scale_keeps_the_ratio_in_a_warm_up(timm: Any) -> None:
    """The way out: one rate for all, and the ratio as timm's `lr_scale`."""
    groups = sf.split_body_head(_vit(), head="head")
    groups[1]["lr_scale"] = 10.0
    optimizer = sf.StackelbergAdamW(groups, lr=1e-4, head_lr_ratio=1.0)
    schedule = _cosine(optimizer)
    for number in range(4):
        body, head = (group["lr"] for group in optimizer.param_groups)
        assert head / body == pytest.approx(10.0)
        schedule.step_update(number + 1)


def test_registered_for_the_factory(timm: Any) -> None:
    """`--opt stackelbergadamw` of timm's scripts, once it is registered."""
    registry = timm._optim_factory.default_registry
    registry.register(timm.OptimInfo("stackelbergadamw", sf.StackelbergAdamW, has_betas=True))
    trained = []
    for name in ("stackelbergadamw", "adamw"):
        model = _vit()
        optimizer = timm.create_optimizer_v2(
            model, name, lr=1e-3, weight_decay=0.05, layer_decay=0.5
        )
        trained.append(_train(model, optimizer, _cosine(optimizer)))
    assert_close_weights(*trained)


NETWORKS = [
    *("vit_tiny_patch16_224", "beit_base_patch16_224", "swinv2_tiny_window8_256"),
    *("convnextv2_atto", "twins_svt_small", "levit_128", "eva02_tiny_patch14_224"),
    *("vit_medium_patch16_reg4_gap_256", "crossvit_tiny_240", "mambaout_femto"),
]


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_and_decay_as_timm_has_them(timm: Any, name: str) -> None:
    """Our layers may be coarser (stages), but none comes before another that timm puts behind it."""
    from timm import create_model
    from timm.models import group_parameters

    with torch.device("meta"):
        model = create_model(name, num_classes=7)
    theirs = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    groups = sf.layerwise_lr_decay(model, 0.5, lr=1.0)
    found: dict[float, set[int]] = {}
    for group in groups:
        found.setdefault(group["lr"], set()).update(theirs[n] for n, _ in group["params"])
    in_order = [ids for _, ids in sorted(found.items())]
    assert len(in_order) >= 5
    for before, after in itertools.pairwise(in_order):
        assert max(before) <= min(after)
    exempt = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    expected = {n for n, p in model.named_parameters() if p.ndim <= 1 or n in exempt}
    decay = sf.decay_by_module(model, 0.1)
    assert {n for g in decay if not g["weight_decay"] for n, _ in g["params"]} == expected
