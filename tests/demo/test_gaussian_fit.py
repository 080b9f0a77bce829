"""The Gaussians: what is rendered, how they grow in number, and optimizers that go the same way."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn")

from stackelberg_fused.demo.gaussian_fit import QUICK, factor, fit
from stackelberg_fused.demo.gaussian_model import (
    KINDS,
    PUBLISHED,
    WIDTHS,
    Params,
    begin,
    densify,
    pack,
    photograph,
    raster,
    render,
    sample,
    unpack,
)
from stackelberg_fused.demo.gaussian_optimizers import ByKind, SixAdams


def _random(count: int, seed: int = 0) -> Params:
    generator = torch.Generator().manual_seed(seed)
    params = begin(count, 1.5, generator)
    noise = {k: 0.3 * torch.randn(count, WIDTHS[k], generator=generator) for k in KINDS}
    return {kind: value + noise[kind] for kind, value in params.items()}


def _pixel(params: Params, x: float, y: float) -> Tensor:
    """The colour of a pixel, one Gaussian after the other, from front to back."""
    colour, light = torch.zeros(3), 1.0
    for i in range(len(params["position"])):
        angle, (a, b) = float(params["rotation"][i]), params["scale"][i].exp().tolist()
        dx, dy = x - float(params["position"][i, 0]), y - float(params["position"][i, 1])
        u = (math.cos(angle) * dx + math.sin(angle) * dy) / a
        v = (math.cos(angle) * dy - math.sin(angle) * dx) / b
        alpha = 0.99 * float(params["opacity"][i].sigmoid()) * math.exp(-0.5 * (u * u + v * v))
        slope = params["slope"][i].view(2, 3)
        own = 0.5 + 0.28209 * params["colour"][i] + 0.4886 * (u * slope[0] + v * slope[1])
        colour += light * alpha * own
        light *= 1.0 - alpha
    return colour


def test_pixels_are_gaussians_before_one_another() -> None:
    params, pixels = _random(7), raster(4, 6)
    expected = [
        _pixel(params, (column + 0.5) / 4 - 0.75, (row + 0.5) / 4 - 0.5)
        for row in range(4)
        for column in range(6)
    ]
    torch.testing.assert_close(render(params, pixels), torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_needles_are_finite() -> None:
    params = _random(50)
    params["scale"][:, 0] = -14.0
    params["opacity"][:] = 30.0
    assert render(params, raster(24, 36)).isfinite().all()


def test_those_with_large_gradients_are_split_where_they_lie() -> None:
    params = _random(5)
    params["opacity"][:] = 2.0
    params["opacity"][3] = -9.0  # invisible
    pulls = torch.tensor([1.0, 7.0, 2.0, 99.0, 6.0])
    new, rows = densify(params, pulls, 6, torch.Generator())
    assert rows.tolist() == [0, -1, -1, 2, -1, -1]
    sources = [0, 1, 1, 2, 4, 4]
    for kind in ("rotation", "opacity", "colour", "slope"):
        assert torch.equal(new[kind], params[kind][sources])
    halves = rows < 0
    assert torch.equal(new["position"][~halves], params["position"][[0, 2]])
    assert (new["position"][halves] != params["position"][sources][halves]).all()
    torch.testing.assert_close(
        new["scale"][halves].exp() * 1.6, params["scale"][sources][halves].exp()
    )
    assert densify(params, pulls, 2, torch.Generator())[1].tolist() == [0, 1, 2, 4]


def test_a_step_sees_one_pixel_of_each_block() -> None:
    seen = sample(6, 8, torch.Generator())
    blocks = {(int(i) // 8 // 2, int(i) % 8 // 4) for i in seen}
    assert len(seen) == len(blocks) == 6


def test_the_photograph_is_in_colour() -> None:
    image = photograph(12, 18)
    assert image.shape == (216, 3)
    assert 0.0 <= float(image.min()) < 0.1 < 0.9 < float(image.max()) <= 1.0


def test_written_and_read() -> None:
    params = _random(5)
    read = unpack(json.loads(json.dumps(pack(params))))
    for kind, value in params.items():
        torch.testing.assert_close(read[kind], value, atol=1e-3, rtol=1e-3)


def test_rates_fall_in_the_second_half() -> None:
    falling = [factor("falling", step, 100) for step in (1, 50, 51, 75, 100)]
    assert falling[:2] == [1.0, 1.0]
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] == pytest.approx(0.05)
    assert factor("constant", 100, 100) == 1.0


def test_surgery_by_hand_gives_the_same_state() -> None:
    start = _random(6)
    sides: list[Any] = [cls(start, dict.fromkeys(KINDS, 0.01)) for cls in (ByKind, SixAdams)]
    rows = torch.tensor([0, -1, -1, 2, 5])
    for optimizer in sides:
        for seed, param in enumerate(optimizer.params.values()):
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
        values = {kind: p.detach()[rows] for kind, p in optimizer.params.items()}
        optimizer.replace(values, rows)
        assert [len(p) for p in optimizer.params.values()] == [5] * len(KINDS)
    for kind in KINDS:
        ours = sides[0].optimizer.state[sides[0].params[kind]]
        theirs = sides[1]._optimizers[kind].state[sides[1].params[kind]]
        for name in ("exp_avg", "exp_avg_sq", "step"):
            torch.testing.assert_close(ours[name], theirs[name])


def test_one_launch_goes_the_way_of_six_adams() -> None:
    rates = {kind: 16.0 * rate for kind, rate in PUBLISHED.items()}
    found = [fit(cls, rates, "constant", 5, QUICK) for cls in (ByKind, SixAdams)]
    assert [run["gaussians"] for run in found] == [QUICK.last] * 2
    for ours, theirs in zip(*(run["psnr"].values() for run in found), strict=True):
        assert ours == pytest.approx(theirs, abs=0.02)


def test_what_is_raised_after_a_step_ends_the_run() -> None:
    seen = []

    def stop(step: int) -> None:
        seen.append(step)
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(ByKind, PUBLISHED, "constant", 5, QUICK, after_step=stop)
    assert seen == [1, 2, 3]
