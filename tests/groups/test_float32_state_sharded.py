"""Which parameters keep float32 state, and which have no weight decay, where FSDP1 flattened them."""

from __future__ import annotations

import pytest
import torch
import wrapped_models as models
from ranks import Ranks, of_ranks
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.groups.schemes import scheme_of

pytestmark = of_ranks


def _fsdp1(wrapper: str, state_dtype: str) -> dict[str, list[str]]:
    """What each parameter's state is stored as; the same on every rank, and trained as with float32 state."""
    model = models.WRAPPERS[wrapper](models.plain())
    named = [(n, p) for g in models.groups_of(model) for n, p in g["params"]]
    ours = sf.StackelbergAdamW(named, lr=0.01, state_dtype=state_dtype, backend="cpu")
    exact_model = models.WRAPPERS[wrapper](models.plain())
    exact = sf.StackelbergAdamW(exact_model.parameters(), lr=0.01, backend="cpu")
    for inputs, targets in models.batches(3, wrapper):
        for trained, optimizer in ((model, ours), (exact_model, exact)):
            nn.functional.mse_loss(trained(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    for p, q in zip(model.parameters(), exact_model.parameters(), strict=True):
        torch.testing.assert_close(models.local(p), models.local(q), rtol=0.0, atol=0.05)
    (group,) = ours.param_groups
    found = {}
    for name, param in named:
        found[name] = str(scheme_of(group, param, name).state)
        held = {str(v.dtype) for n, v in ours.state.get(param, {}).items() if n.startswith("exp")}
        assert held in (set(), {found[name]}), (name, held)
    return found


FEWER = {"bfloat16": "torch.bfloat16", "8bit": "torch.uint8"}


@pytest.mark.parametrize("state_dtype", FEWER)
@pytest.mark.parametrize("wrapper, world", [("none", 1), ("FSDP1", 1), ("FSDP1", 2), ("FSDP1", 3)])
def test_fsdp1_keeps_parameters(ranks: Ranks, wrapper: str, world: int, state_dtype: str) -> None:
    """With use_orig_params=True each is a view of one dimension."""
    for found in ranks(world, _fsdp1, wrapper, state_dtype):
        for name, state in found.items():
            expected = FEWER[state_dtype] if name.endswith("weight") else "torch.float32"
            assert state == expected, name


@pytest.mark.parametrize("state_dtype", FEWER)
def test_fsdp1_flattens_parameters(ranks: Ranks, state_dtype: str) -> None:
    """A weight and a bias are one parameter: the weight decides."""
    for found in ranks(2, _fsdp1, "FSDP1, flat", state_dtype):
        assert set(found.values()) == {FEWER[state_dtype]}


def _no_decay(wrapper: str) -> None:
    model = models.WRAPPERS[wrapper](models.plain())
    body, body_rest, head, head_rest = sf.split_body_head(
        model, head=lambda name, _: "4." in name, no_decay=True
    )
    for group, end in (
        (body, "weight"),
        (body_rest, "bias"),
        (head, "weight"),
        (head_rest, "bias"),
    ):
        assert all(name.endswith(end) for name, _ in group["params"]), (end, group)


def test_no_decay_is_of_original_shapes(ranks: Ranks) -> None:
    for wrapper in ("none", "FSDP1", "FSDP2"):
        ranks(2, _no_decay, wrapper)
