"""Code in the text that names something of the library."""

from __future__ import annotations

import pytest

pytest.importorskip("sphinx")

from names import target_of

KNOWN = {
    f"stackelberg_fused.{name}"
    for name in (
        *("find_ratio", "kinds", "Box", "StackelbergAdam", "StackelbergAdam.step"),
        *("StackelbergAdam.last_step", "StackelbergAdam.zero_grad", "StackelbergAdam.state"),
    )
}


@pytest.mark.parametrize(
    "mention, name",
    [
        ("sf.find_ratio", "find_ratio"),
        ("find_ratio", "find_ratio"),
        ("sf.kinds(model, {'head': x})", "kinds"),
        ("stackelberg_fused.kinds()", "kinds"),
        ("Box", "Box"),
        ("StackelbergAdam.step", "StackelbergAdam.step"),
        ("opt.step()", "StackelbergAdam.step"),
        ("opt.step(zero_grad=True)", "StackelbergAdam.step"),
        ("kinds()", "kinds"),
        ("last_step", "StackelbergAdam.last_step"),
        ("opt.zero_grad()", "StackelbergAdam.zero_grad"),
        # of many things
        ("kinds", None),
        ("step", None),
        ("step()", None),
        ("state", None),
        ("zero_grad", None),
        ("model.zero_grad()", None),
        ("scaler.step(opt)", None),
        ("opt.param_groups[0]['lr']", None),
        ("sf.nothing", None),
    ],
)
def test_mentions(mention: str, name: str | None) -> None:
    assert target_of(mention, KNOWN) == (name and f"stackelberg_fused.{name}")
