"""Whether a layer beside the stack of blocks is before or after it: by name and shape, where order may deceive."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from torch import nn

from .detect_head import COMPANIONS, USUAL_HEADS

Side = Literal["before", "after"]

_EARLY = re.compile(
    r"(^|_)(w[tp]e|emb\w*|patch\w*|tokens?|pos|position\w*|words?|chars?|stem|input\w*|in|pre|pre_?\w*norm|prenet"
    r"|front\w*|mask\w*|subsampl\w*|features?|first|conv\w*|vision\w*|visual\w*|images?|audio\w*|encoder\w*|shared"
    r"|projector|connector|aligner)(_|\d|$)"
)
_LATE = re.compile(
    r"(^|_)(out|output\w*|final\w*|last|post\w*|heads?|logits?|pool\w*|classif\w*|cls|class|classes|pred\w*|score\w*"
    r"|decod\w*|fc|readout|lm|vocab\w*|ln_f|norm_f|answers?|targets?|labels?)(_|\d|$)"
)
# before it, though made after it; no "embedding_norm", which is LFM2's last one
_SURELY_EARLY = re.compile(
    r"(\w+_)?(embed|embeddings?|embedder|patch_embed\w*|pos_embed\w*|layernorm_embedding"
    r"|input_proj\w*|proj_in|in_proj|project_in|embed_in|wte|wpe|stem|prompt_encoder)"
)
_NEVER_EARLY = frozenset((*USUAL_HEADS, *COMPANIONS))
_SIMPLE = 4  # layers with matrices; what has more is a network of its own, as the image tower of a language model


def side_by_name(parts: list[str]) -> Side | None:
    """Say on which side of the stack a module or parameter is by its name; None where that says nothing, or both.

    Args:
        parts: of its name below what it has in common with the stack, outermost first.
    """
    for part in parts:
        if part in _NEVER_EARLY:
            return "after"
        is_early, is_late = _EARLY.search(part) is not None, _LATE.search(part) is not None
        if is_early != is_late:
            return "before" if is_early else "after"
    return None


def is_surely_early(part: str) -> bool:
    """Tell whether something of this name is before the stack, even if it was made after it."""
    return _SURELY_EARLY.fullmatch(part) is not None


def side_by_shape(module: nn.Module, first: nn.Module, last: nn.Module) -> Side | None:
    """Say on which side of the stack a module is by what comes in and goes out; None where that says nothing.

    Args:
        module: of which all is on one side.
        first, last: blocks of the stack.
    """
    sizes = list(_sizes(module))
    into, out_of = next(_sizes(first), None), next(_sizes(last), None)
    if not sizes or into is None or out_of is None:
        return None
    if len(sizes) > _SIMPLE:
        return "before"
    takes_theirs, gives_theirs = sizes[0][0] == out_of[0], sizes[-1][1] == into[0]
    if takes_theirs == gives_theirs:
        return None
    return "after" if takes_theirs else "before"


def _sizes(module: nn.Module) -> Iterator[tuple[int, int]]:
    """What comes into and goes out of each layer, in their order; a block begins with what it takes."""
    for pair in (("in_features", "out_features"), ("nx", "nf"), ("in_channels", "out_channels")):
        found = [
            (getattr(one, pair[0], None), getattr(one, pair[1], None)) for one in module.modules()
        ]
        known = [(i, o) for i, o in found if isinstance(i, int) and isinstance(o, int)]
        if known:
            yield from known
            return
