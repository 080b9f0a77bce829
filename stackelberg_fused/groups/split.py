"""The split of a model into body and head."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import Tensor, nn

from .option_types import Tied

log = logging.getLogger("stackelberg_fused")

# Last layers by their usual names (transformers, torchvision, timm, and plain habit).
USUAL_HEADS = (
    "lm_head",
    "embed_out",
    "score",
    "classifier",
    "fc",
    "head",
    "heads",
    "output_layer",
    "output",
    "out",
    "readout",
    "policy_head",
    "value_head",
)

Head = str | nn.Module | Iterable["str | nn.Module"] | Callable[[str, nn.Parameter], bool] | None


def _candidates(model: nn.Module) -> str:
    leaves = [
        name for name, module in model.named_modules() if name and not list(module.children())
    ]
    with_params = [n for n in leaves if list(model.get_submodule(n).parameters(recurse=False))]
    return ", ".join(map(repr, with_params[-8:])) or "none: the model has no layers with parameters"


def detect_head(model: nn.Module) -> nn.Module:
    """The last layer: `get_output_embeddings()` where the model has it, else a direct child with a usual name.

    Raises:
        ValueError: nothing was found, or several; lists the candidates.
    """
    getter = getattr(model, "get_output_embeddings", None)
    if callable(getter):
        head = getter()
        if isinstance(head, nn.Module):
            return head
    children = dict(model.named_children())
    found = [n for n in USUAL_HEADS if n in children and list(children[n].parameters())]
    if len(found) == 1:
        log.info("head: %r, by its name", found[0])
        return children[found[0]]
    why = f"{', '.join(map(repr, found))} all have a usual name" if found else "no usual name"
    raise ValueError(
        f"the head (last layer) could not be detected ({why}); pass head= a name, a module, a list of either, or a "
        f"predicate. Last layers with parameters: {_candidates(model)}"
    )


def _names_of(model: nn.Module, part: Any) -> set[str]:
    """Every name under which the model knows the parameters of a part of the head."""
    modules = list(model.named_modules(remove_duplicate=False))
    if isinstance(part, str):
        if part in dict(model.named_parameters(remove_duplicate=False)):
            return {part}
        paths = [(name, module) for name, module in modules if name and name == part]
        if not paths:
            raise ValueError(
                f"the model has no module or parameter named {part!r}. "
                f"Last layers with parameters: {_candidates(model)}"
            )
    elif isinstance(part, nn.Module):
        paths = [(name, module) for name, module in modules if module is part]
        if not paths:
            raise ValueError(f"the head {type(part).__name__} is not a module of the model")
    else:
        raise TypeError(
            f"head must be a name, a module, a list of either or a predicate, got {type(part).__name__}"
        )
    return {
        f"{path}.{name}" if path else name
        for path, module in paths
        for name, _ in module.named_parameters(remove_duplicate=False)
    }


def _head_names(model: nn.Module, head: Head) -> set[str]:
    if callable(head) and not isinstance(head, nn.Module):
        return {n for n, p in model.named_parameters(remove_duplicate=False) if head(n, p)}
    if head is None:
        head = detect_head(model)
    single = isinstance(head, (str, nn.Module, Tensor)) or not isinstance(head, Iterable)
    parts: Iterable[Any] = [head] if single else cast("Iterable[Any]", head)
    return {name for part in parts for name in _names_of(model, part)}


def _head_ids(model: nn.Module, head_names: set[str], tied: str) -> set[int]:
    """The head's parameters. One that body and head share can only have one rate, so `tied` has to decide."""
    names: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(param), []).append(name)
    inside = {i for i, n in names.items() if not head_names.isdisjoint(n)}
    shared = {i for i in inside if not head_names.issuperset(names[i])}
    if not shared or tied == "head":
        return inside
    if tied == "body":
        return inside - shared
    listing = "; ".join(" = ".join(names[i]) for i in names if i in shared)
    raise ValueError(
        f"the head shares weights with other layers ({listing}): one tensor can only have one rate. Untie them or pass "
        "tied='head' (the shared weight follows the fast rate) or tied='body' (the slow one)"
    )


def is_no_decay(param: nn.Parameter) -> bool:
    """Tell whether a parameter is usually exempt from weight decay: biases, norm scales."""
    return param.dim() <= 1


def split_body_head(
    model: nn.Module, head: Head = None, *, no_decay: bool = False, tied: Tied = "error"
) -> list[dict[str, Any]]:
    """Param groups for a two-time-scale optimizer: everything but the last layer, and the last layer.

    Args:
        model: all its parameters are dealt out, each once, with names.
        head: a module's or parameter's name, a module, a list of either, a predicate `(name, parameter) -> bool`, or
            None to detect the last layer by its name (`detect_head`).
        no_decay: put biases and norm scales (at most one dimension) in groups of their own with `weight_decay=0`.
        tied: what becomes of a weight that the head shares with another layer (GPT-2's embedding): "head", "body", or
            "error".

    Returns:
        Group dicts with "params" as (name, parameter) pairs and "role", body first.

    Raises:
        ValueError: no head found, an unknown name, an empty head or body, or tied weights without a decision.
        TypeError: `model` or `head` is something else.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"split_body_head needs the model, an nn.Module, got {type(model).__name__}"
        )
    if tied not in ("error", "head", "body"):
        raise ValueError(f"tied must be 'error', 'head' or 'body', got {tied!r}")
    head_ids = _head_ids(model, _head_names(model, head), tied)
    groups: list[dict[str, Any]] = []
    for role in ("body", "head"):
        named = [
            (n, p) for n, p in model.named_parameters() if (id(p) in head_ids) == (role == "head")
        ]
        if not named:
            raise ValueError(
                f"the {role} is empty: no parameter of the model belongs to it, given this head"
            )
        if no_decay:
            decayed = [(n, p) for n, p in named if not is_no_decay(p)]
            rest = [(n, p) for n, p in named if is_no_decay(p)]
            if decayed:
                groups.append({"params": decayed, "role": role})
            if rest:
                groups.append({"params": rest, "role": role, "weight_decay": 0.0})
        else:
            groups.append({"params": named, "role": role})
    return groups
