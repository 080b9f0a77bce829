"""Whether a layer beside the stack of blocks is before or after it: by name and shape, where order may deceive."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
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
# of torch's linear layers, transformers' Conv1D, convolutions, recurrent layers
_SIZES = (
    ("in_features", "out_features"),
    ("nx", "nf"),
    ("in_channels", "out_channels"),
    ("input_size", "hidden_size"),
)
_POSITIONS = re.compile(r"pos|wpe|type|rel")
_COUNTS = ("num_embeddings", "num_classes", "num_labels", "vocab_size")
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


def side_by_shape(
    module: nn.Module, first: nn.Module, last: nn.Module, outputs: Collection[int] = ()
) -> Side | None:
    """Say on which side of the stack a module is by what comes in and goes out; None where that says nothing.

    A multiple of the width says nothing: layers that modulate all blocks give several times as much, and those that
    join features take it.

    Args:
        module: of which all is on one side.
        first, last: blocks of the stack.
        outputs: numbers of classes and tokens of the model, as far as they are known.
    """
    sizes = list(_sizes(module))
    into, out_of = _width(first), _width(last)
    if not sizes or into is None or out_of is None:
        return None
    if len(sizes) > _SIMPLE:
        return "before"
    taken, given = sizes[0][0], sizes[-1][1]
    if taken == out_of and (given % into or given in outputs):
        return "after"
    return "before" if given == into and taken % out_of else None


def go_along(parts: Sequence[nn.Module], blocks: Sequence[nn.Module]) -> bool:
    """Tell whether each part of a list may go with one of the blocks.

    It is a norm, or gives what its block takes, and takes the same, or what the block before gives: the layers between
    the stages of ConvNeXt, Twins, PoolFormer.
    """
    widths = [_width(block) for block in blocks]
    for number, part in enumerate(parts):
        sizes = list(_sizes(part))
        if not sizes:
            continue
        fitting = widths[max(number - 1, 0) : number + 1]
        taken_fits = sizes[0][0] in fitting or (number == 0 and len({*widths}) > 1)
        if sizes[-1][1] != widths[number] or not taken_fits:
            return False
    return True


def known_outputs(modules: Mapping[str, nn.Module]) -> set[int]:
    """Return the numbers of classes and tokens that modules of a model tell.

    Args:
        modules: by name; tables of positions do not count.
    """
    found = set()
    for path, module in modules.items():
        if _POSITIONS.search(path.rpartition(".")[2]):
            continue
        for holder in (module, getattr(module, "config", None)):
            values = [getattr(holder, name, None) for name in _COUNTS]
            found |= {value for value in values if isinstance(value, int)}
    return found


def _width(block: nn.Module) -> int | None:
    """What a block takes: its first layer does."""
    return next((taken for taken, _ in _sizes(block)), None)


def _sizes(module: nn.Module) -> Iterator[tuple[int, int]]:
    """What comes into and goes out of each layer, in their order."""
    for pair in _SIZES:
        found = [
            (getattr(one, pair[0], None), getattr(one, pair[1], None)) for one in module.modules()
        ]
        known = [(i, o) for i, o in found if isinstance(i, int) and isinstance(o, int) and i > 0]
        if known:
            yield from known
            return
