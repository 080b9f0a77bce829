"""Arenas: placement and lifetime of tensors, and no visible change for other code."""

from __future__ import annotations

import gc
import io
import weakref

import pytest
import torch
from cases import SIZES, normal
from checks import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.memory import arena
from stackelberg_fused.memory.arena import (
    ALIGNMENT,
    is_dense,
    move_into_arenas,
    owns_storage,
    zeros_like,
)


def _params(sizes: tuple[int, ...] = SIZES) -> list[nn.Parameter]:
    return [nn.Parameter(normal(n, i)) for i, n in enumerate(sizes)]


def _saved(tensors: object) -> int:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.tell()


def test_consecutive_aligned_and_unchanged() -> None:
    params = _params()
    before = [p.detach().clone() for p in params]
    objects = [id(p) for p in params]
    move_into_arenas(params)
    assert [id(p) for p in params] == objects
    for p, b in zip(params, before, strict=True):
        assert_same_bits(p, b)
        assert p.requires_grad
        assert p.is_leaf
    start = next(p.data_ptr() for p in params if p.numel())
    expected = 0
    for p in params:
        if p.numel():
            assert p.data_ptr() - start == 4 * expected
            expected += -(-p.numel() // ALIGNMENT) * ALIGNMENT


def test_every_tensor_has_a_storage_of_its_own_size() -> None:
    params = _params()
    move_into_arenas(params)
    for p in params:
        assert p.untyped_storage().nbytes() == 4 * p.numel()
        assert p.storage_offset() == 0


def test_one_tensor_keeps_its_arena_alive() -> None:
    params = _params((1000, 1000))
    move_into_arenas(params)
    kept, expected = params[1], params[1].detach().clone()
    del params[:]
    gc.collect()
    churn = [torch.full((1000,), 7.0) for _ in range(50)]
    assert_same_bits(kept, expected)
    assert len(churn) == 50


def test_originals_are_freed() -> None:
    param = nn.Parameter(normal(1000, 1))
    original = weakref.ref(param.untyped_storage())
    move_into_arenas([param])
    gc.collect()
    assert original() is None


@pytest.mark.parametrize(
    "shape, strides", [((4, 6), (1, 4)), ((2, 3, 4, 5), (60, 1, 15, 3)), ((1, 5), (9, 1)), ((), ())]
)
def test_strides_are_kept(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    value = torch.empty_strided(shape, strides)
    value.copy_(normal(shape, 1))
    param = nn.Parameter(value)
    before = param.detach().clone()
    move_into_arenas([param])
    assert [s for n, s in zip(shape, param.stride(), strict=True) if n > 1] == [
        s for n, s in zip(shape, strides, strict=True) if n > 1
    ]
    assert_same_bits(param, before)


def test_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "BUCKET_BYTES", 4 * 4 * ALIGNMENT)
    tensors = [torch.empty(n * ALIGNMENT) for n in (1, 2, 2, 9, 1, 3, 1)]
    assert [
        [t.numel() // ALIGNMENT for t in b] for b in arena.buckets(tensors, arena.BUCKET_BYTES)
    ] == [
        [1, 2],
        [2],
        [9],
        [1, 3],
        [1],
    ]
    params = [nn.Parameter(t.fill_(i)) for i, t in enumerate(tensors)]
    move_into_arenas(params)
    assert [p.unique().item() for p in params] == list(range(7))


def test_building_never_holds_a_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a bucket is filled, the originals of all earlier buckets have been freed."""
    monkeypatch.setattr(arena, "BUCKET_BYTES", 4 * 1024)
    params = [nn.Parameter(normal(1024, i)) for i in range(8)]
    originals = [weakref.ref(p.untyped_storage()) for p in params]
    alive: list[int] = []
    allocate = torch.empty

    def counting(*args: object, **kwargs: object) -> Tensor:
        alive.append(sum(ref() is not None for ref in originals))
        return allocate(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", counting)
    move_into_arenas(params)
    assert alive == [8, 7, 6, 5, 4, 3, 2, 1]


def test_state_is_zero_and_shaped_as_its_parameter() -> None:
    likes = [
        torch.empty_strided((4, 6), (1, 4)),
        torch.empty(()),
        torch.empty(0, 3),
        torch.empty(5),
    ]
    for like, zeros in zip(likes, zeros_like(likes), strict=True):
        assert zeros.shape == like.shape
        assert zeros.stride() == like.stride()
        assert not zeros.any()


@given(
    st.lists(st.integers(1, 4), min_size=0, max_size=4),
    st.permutations(range(4)),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_is_dense(shape: list[int], order: list[int], gaps: list[bool]) -> None:
    """Compare with the definition: the addresses form one range, each exactly once."""
    strides = [0] * len(shape)
    step = 1
    for d in [d for d in order if d < len(shape)]:
        strides[d] = step
        step *= shape[d] + gaps[d]
    tensor = torch.empty_strided(shape, strides)
    places = {0}
    for n, s in zip(shape, strides, strict=True):
        places = {p + s * i for p in places for i in range(n)}
    assert is_dense(tensor) == (sorted(places) == list(range(tensor.numel())))


def test_owns_storage() -> None:
    base = torch.ones(10)
    assert owns_storage(base)
    assert owns_storage(base.view(2, 5))
    assert not owns_storage(base[:5])
    assert not owns_storage(base[5:])


def test_saving_one_layer_writes_one_layer() -> None:
    model = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 2))
    sizes = [_saved(layer.state_dict()) for layer in model]
    sf.StackelbergAdamW(model.parameters())
    assert [_saved(layer.state_dict()) for layer in model] == sizes
    assert _saved(model[1].weight.detach()) < 5000


def test_safetensors_saves_a_flattened_model(tmp_path: pytest.TempPathFactory) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 2))
    sf.StackelbergAdamW(model.parameters())
    path = str(tmp_path / "model.safetensors")
    safetensors.save_model(model, path)
    twin = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 2))
    safetensors.load_model(twin, path)
    for a, b in zip(twin.parameters(), model.parameters(), strict=True):
        assert_same_bits(a, b)


def test_flatten_false_moves_nothing() -> None:
    params = _params()
    addresses = [p.data_ptr() for p in params]
    optimizer = sf.StackelbergAdamW(params, flatten=False)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert [p.data_ptr() for p in params] == addresses
    assert optimizer.launches == 1
