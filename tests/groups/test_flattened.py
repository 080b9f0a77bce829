"""Param groups of what FSDP1 has flattened: of one parameter each, or of several in one."""

from __future__ import annotations

import pytest
import wrapped_models as models
from ranks import Ranks, of_ranks

import stackelberg_fused as sf

pytestmark = of_ranks


def _groups(wrapper: str) -> None:
    model = models.WRAPPERS[wrapper](models.plain())
    makers = (
        sf.kinds,
        lambda m: sf.decay_by_module(m, 0.1),
        lambda m: sf.layerwise_lr_decay(m, 0.5, lr=1.0),
    )
    if wrapper == "FSDP1, flat":
        for make in makers:
            with pytest.raises(ValueError, match="several parameters that FSDP has flattened"):
                make(model)
        return
    decayed, spared = sf.decay_by_module(model, 0.1)
    assert all(name.endswith("weight") for name, _ in decayed["params"])
    assert all(name.endswith("bias") for name, _ in spared["params"])


def test_what_is_several_parameters_is_refused(ranks: Ranks) -> None:
    for wrapper in ("FSDP1", "FSDP1, flat"):
        ranks(2, _groups, wrapper)
