"""The split of a model into body and head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import Tensor, nn

from ..memory.flattened import original_shapes
from ..memory.presence import is_uninitialized
from ..warning import warn_caller
from .detect_head import candidates, detect_head, unwrapped
from .option_types import Tied

Head = str | nn.Module | Iterable["str | nn.Module"] | Callable[[str, nn.Parameter], bool] | None


def _names_of(model: nn.Module, part: Any) -> set[str]:
    """Every name under which the model knows the parameters of a part of the head."""
    modules = list(model.named_modules(remove_duplicate=False))
    if isinstance(part, str):
        params = dict(model.named_parameters(remove_duplicate=False))
        # as the model knows it, or as one of those inside of wrappers does
        wrappers = unwrapped(model)[0].split(".")[:-1]
        names = [".".join([*wrappers[:depth], part]) for depth in range(len(wrappers) + 1) if part]
        for name in names:
            if name in params:
                return {name}
        paths = next(
            (found for n in names if (found := [(p, m) for p, m in modules if p == n])), []
        )
        if not paths:
            raise ValueError(
                f"the model has no module or parameter named {part!r}. "
                f"Last layers with parameters: {candidates(model)}"
            )
    elif isinstance(part, nn.Module):
        # the head itself may be wrapped, and not the model
        parts = (part, unwrapped(part)[1])
        paths = [(name, module) for name, module in modules if any(module is p for p in parts)]
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
        modules = dict(model.named_modules(remove_duplicate=False))
        head = [modules.get(name, name) for name in detect_head(model)]
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
    slow = " or tied='body' (the slow one)"
    if shared == inside:
        slow = "; it has no other weights, so that tied='body' would leave nothing of it"
    raise ValueError(
        f"the head shares weights with other layers ({listing}): one tensor can only have one rate. Untie them or pass "
        f"tied='head' (the shared weight follows the fast rate){slow}"
    )


def is_no_decay(param: nn.Parameter) -> bool:
    """Tell whether a parameter is usually exempt from weight decay: biases, norm scales.

    What FSDP1 has flattened counts with the shape that it had.
    """
    return all(len(shape) <= 1 for shape in original_shapes(param) or (param.shape,))


def split_body_head(
    model: nn.Module,
    head: Head = None,
    *,
    no_decay: bool = False,
    tied: Tied = "error",
    named: bool = True,
) -> list[dict[str, Any]]:
    """Param groups for a two-time-scale optimizer: everything but the last layers, and the last layers.

    Args:
        model: all its parameters are dealt out, each once. It may be wrapped (`DistributedDataParallel`, PEFT,
            `torch.compile`, ...).
        head: a module's or parameter's name, with or without the names of wrappers before it, a module, a list of
            either, a predicate `(name, parameter) -> bool`, or None to detect the last layers (`detect_head`).
        no_decay: put biases and norm scales (at most one dimension) in groups of their own with `weight_decay=0`.
        tied: what becomes of a weight that the head shares with another layer (GPT-2's embedding): "head", "body", or
            "error".
        named: give each parameter with its name. False is for wrappers and factories that take tensors only (mup).

    Returns:
        Group dicts with "params" as (name, parameter) pairs, or parameters, and "role", body first. One warning says
        that every parameter of the head is frozen.

    Raises:
        ValueError: no head found, an unknown name, an empty head or body, or tied weights without a decision.
        TypeError: `model` or `head` is something else.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> groups = sf.split_body_head(model, head="2", no_decay=True)
        >>> for group in groups:
        ...     print(group["role"], [name for name, _ in group["params"]], group.get("weight_decay"))
        body ['0.weight'] None
        body ['0.bias', '1.weight', '1.bias'] 0.0
        head ['2.weight'] None
        head ['2.bias'] 0.0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"split_body_head needs the model, an nn.Module, got {type(model).__name__}"
        )
    if tied not in ("error", "head", "body"):
        raise ValueError(f"tied must be 'error', 'head' or 'body', got {tied!r}")
    head_names = _head_names(model, head)
    head_ids = _head_ids(model, head_names, tied)
    groups: list[dict[str, Any]] = []
    for role in ("body", "head"):
        pairs = [
            (n, p) for n, p in model.named_parameters() if (id(p) in head_ids) == (role == "head")
        ]
        if not pairs:
            raise ValueError(_why_empty(role, bool(head_names)))
        if role == "head" and not any(p.requires_grad for _, p in pairs):
            warn_caller(_frozen(sorted(head_names)))
        groups.extend(_groups_of(pairs, role, no_decay))
    if not named:
        for group in groups:
            group["params"] = [p for _, p in group["params"]]
    return groups


def _groups_of(
    pairs: list[tuple[str, nn.Parameter]], role: str, no_decay: bool
) -> list[dict[str, Any]]:
    if not no_decay:
        return [{"params": pairs, "role": role}]
    for name, param in pairs:
        if is_uninitialized(param):
            raise ValueError(
                f"no_decay=True asks for the shape of {name!r}, which a lazy module gives it on its first input: run "
                "the model once before"
            )
    decayed = [(n, p) for n, p in pairs if not is_no_decay(p)]
    rest = [(n, p) for n, p in pairs if is_no_decay(p)]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "role": role},
        {"params": rest, "role": role, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _why_empty(role: str, found_head: bool) -> str:
    if role == "head" and found_head:
        return (
            "the head is empty: other layers share all of its weights, and tied='body' gives them to the body. Untie "
            "them or pass tied='head'"
        )
    return f"the {role} is empty: no parameter of the model belongs to it, given this head"


def _frozen(names: list[str]) -> str:
    listing = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return (
        f"every parameter of the head is frozen ({listing}), so that no rate reaches it. Pass head= layers that are "
        "trained (with LoRA the lora_B matrices: head=lambda name, p: 'lora_B' in name), or unfreeze the head"
    )
