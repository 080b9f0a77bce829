"""Rates that fall from layer to layer, from the head down to the embeddings (layer-wise learning rate decay, LLRD)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from .builders import Group, check_at_least_zero, check_number, group_of
from .detect_head import detect_head, unwrapped
from .layer_stack import LayerStack, find_stack
from .model_parameters import ModelParameter, model_parameters, plain_name, refuse_unknown
from .purpose import purposes
from .split import is_no_decay

Layers = Callable[[str], int] | Sequence[str]
Heads = str | Iterable[str] | None


def layerwise_lr_decay(
    model: nn.Module,
    decay: float,
    *,
    lr: float,
    head: Heads = None,
    layers: Layers | None = None,
    no_decay: bool = False,
) -> list[Group]:
    """Param groups whose rates fall by a factor from layer to layer: the head and the final norm have `lr`, the last
    block `lr * decay`, each one before it one factor less, and embeddings one less than the first block.

    This is the rule of BEiT (arXiv 2106.08254) and timm's `layer_decay`, and the discriminative rates of ULMFiT
    (Howard and Ruder 2018, arXiv 1801.06146).

    Args:
        model: a stack of equal blocks with something before and after it (ViT, BERT, GPT, Llama, ...), or any model
            with `layers`. Stages of a network count as blocks (Swin, ConvNeXt). It may be wrapped.
        decay: in (0, 1]; 1 is one rate for all.
        lr: of the head.
        head: the last layers by name; None: detected where there are any. A model without a head has its rates from
            the final norm on.
        layers: the order where it is not detected: names of modules or parameters from the embeddings to the head,
            or a function that gives the depth of a parameter by its name, 0 for embeddings, the most for the head.
        no_decay: put biases and norm scales (at most one dimension) in groups of their own with `weight_decay=0`.

    Returns:
        Group dicts from the embeddings to the head with "params" as (name, parameter) pairs, "lr", "name", and
        "role": "head" for the head's. A weight that several layers share is in the first of them, as the embedding
        that it is.

    Raises:
        ValueError: `decay` is outside of (0, 1], `lr` is negative, the layers are not recognised, `layers` leaves
            a parameter out, it cannot be known whether a layer is before or after the blocks, or what parameters are:
            of a lazy module, or flattened by FSDP1 (use_orig_params=False).
        TypeError: the model is no nn.Module, `decay` or `lr` is no number, `head` is no name, or `layers` gives no
            integers.

    Example:
        >>> blocks = [nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16) for _ in range(2)]
        >>> parts = {"embed": nn.Embedding(10, 8), "blocks": nn.ModuleList(blocks)}
        >>> model = nn.ModuleDict({**parts, "norm": nn.LayerNorm(8), "lm_head": nn.Linear(8, 10)})
        >>> for group in sf.layerwise_lr_decay(model, 0.5, lr=1e-3):
        ...     print(group["name"], group["lr"])
        depth 0 0.000125
        depth 1 0.00025
        depth 2 0.0005
        depth 3 0.001
        head 0.001
    """
    check_number("decay", decay)
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"decay must be in (0, 1], got {decay!r}")
    check_at_least_zero("lr", lr)
    params = model_parameters(model)
    if no_decay or layers is None:
        refuse_unknown(params)
    heads = head_names(model, head)
    depths = _given(params, layers) if layers is not None else _found(model, params, heads)
    highest = max(depths)
    groups: list[Group] = []
    for depth in range(min(depths), highest + 1):
        here = [one for one, d in zip(params, depths, strict=True) if d == depth]
        for role in ("body", "head"):
            of_role = [one for one in here if is_in_head(one, heads) == (role == "head")]
            name = role if role == "head" else f"depth {depth}"
            settings = {"lr": lr * decay ** (highest - depth), "role": role, "name": name}
            for spared in (False, True) if no_decay else (None,):
                part = [o for o in of_role if spared is None or is_no_decay(o.param) == spared]
                if part:
                    groups.append(group_of(part, {**settings, **_decay_of(spared)}))
    return groups


def _decay_of(spared: bool | None) -> dict[str, Any]:
    return {"weight_decay": 0.0} if spared else {}


def head_names(model: nn.Module, head: Heads) -> list[str]:
    """Names of the head's modules, as the model inside of wrappers has them; none if it has no head."""
    prefix, core = unwrapped(model)
    if head is None:
        try:
            return [plain_name(name.removeprefix(prefix)) for name in detect_head(model)]
        except ValueError:
            return []
    names = [head] if isinstance(head, str) else list(_names_in(head))
    known = {name for name, _ in core.named_modules(remove_duplicate=False)}
    known |= {name for name, _ in core.named_parameters(remove_duplicate=False)}
    # with the wrappers' names before it too, as a param group shows it
    names = [plain_name(name.removeprefix(prefix)) for name in names]
    known = set(map(plain_name, known))
    for name in names:
        if name not in known:
            raise ValueError(f"the model has no module or parameter named {name!r}")
    return names


def _names_in(head: Iterable[str]) -> Iterable[str]:
    if isinstance(head, nn.Module) or not isinstance(head, Iterable):
        raise TypeError(f"head must be a name or several, got {type(head).__name__}")
    for name in head:
        if not isinstance(name, str):
            raise TypeError(f"head must be a name or several, got a {type(name).__name__} in it")
        yield name


def _is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def is_in_head(one: ModelParameter, heads: Iterable[str]) -> bool:
    """Tell whether a parameter belongs to the head alone; one that is tied to an embedding does not."""
    return all(any(_is_in(name, head) for head in heads) for name in one.names)


def _given(params: list[ModelParameter], layers: Layers) -> list[int]:
    if isinstance(layers, str):
        raise TypeError(
            f"layers must be names of layers in their order or a function, got {layers!r}"
        )
    if not callable(layers):
        return _by_names(params, list(layers))
    depths = []
    for one in params:
        found = [layers(name) for name in one.names]
        if not all(isinstance(depth, int) and not isinstance(depth, bool) for depth in found):
            raise TypeError(
                f"layers({one.names[0]!r}) must be the depth, an integer, got {found[0]!r}"
            )
        depths.append(min(found))
    return depths


def _by_names(params: list[ModelParameter], layers: list[str]) -> list[int]:
    depths, used = [], set()
    for one in params:
        # the innermost of those that contain it: "encoder.norm" may be none of "encoder"
        found = []
        for name in one.names:
            parts = [part for part in layers if _is_in(name, part)]
            if parts:
                found.append(layers.index(max(parts, key=len)))
        if not found:
            raise ValueError(f"parameter {one.names[0]!r} is in none of the layers {layers}")
        depths.append(min(found))
        used.add(layers[min(found)])
    missing = [part for part in layers if part not in used]
    if missing:
        raise ValueError(f"no parameter is in the layer {missing[0]!r}")
    return depths


def _found(model: nn.Module, params: list[ModelParameter], heads: list[str]) -> list[int]:
    """Return 0 for embeddings, 1, 2, ... for blocks and one more for all that comes after them."""
    stack = find_stack(unwrapped(model)[1])
    return [_depth(one, stack, heads) for one in params]


def _depth(one: ModelParameter, stack: LayerStack, heads: list[str]) -> int:
    depths, unknown = [], []
    for name, module, purpose in zip(one.names, one.modules, purposes(one), strict=True):
        if any(_is_in(name, head) for head in heads):
            depths.append(stack.after)
            continue
        try:
            depths.append(stack.depth_of(name, module, purpose))
        except ValueError as error:
            unknown.append(error)
    if unknown and 0 not in depths:  # nothing is earlier, whatever the other name is
        raise unknown[0]
    return min(depths)
